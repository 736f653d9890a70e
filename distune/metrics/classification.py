"""Metrics of class predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError
from distune.metrics.base import CollectingMetric, Metric, PerSampleMetric, metric_registry, one_label, one_output


@metric_registry("topk")
class TopK(PerSampleMetric):
    """Share of samples whose label is among the ``k`` classes with the highest scores.

    Of classes with equal scores the one with the lower id ranks first, as with ``argmax``. NaN scores are wrong.
    Outputs [n, ..., classes], labels [n, ...].
    """

    higher_is_better = True
    outcome_low, outcome_high = 0.0, 1.0

    def __init__(self, k: int = 1, compare_label: bool = True) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise DataError(f"topk: k must be an integer of 1 or more, not {k!r}")
        self.k = k
        self.compare_label = compare_label

    def outcomes(self, outputs: Any, labels: Any) -> NDArray[np.float64]:
        scores, targets = _scores_and_targets(outputs, labels, self)
        if self.k >= scores.shape[-1]:
            raise DataError(
                f"topk: with k = {self.k} and {scores.shape[-1]} classes every prediction would be right; k must be "
                f"smaller than the number of classes"
            )
        return _mean_per_sample(_among_top(scores, targets, self.k))

    def margins(self, outputs: Any, labels: Any) -> NDArray[np.float64] | None:
        return _margins(*_scores_and_targets(outputs, labels, self), self.k)


@metric_registry("Accuracy")
class Accuracy(PerSampleMetric):
    """Share of right predictions.

    Outputs are scores [n, ..., classes] (the highest one is the prediction), predicted ids [n, ...] of an integer
    dtype, or probabilities [n] or [n, 1] of a binary classifier (above 0.5 is class 1). Labels [n, ...].
    """

    higher_is_better = True
    outcome_low, outcome_high = 0.0, 1.0

    def __init__(self, compare_label: bool = True) -> None:
        super().__init__()
        self.compare_label = compare_label

    def outcomes(self, outputs: Any, labels: Any) -> NDArray[np.float64]:
        predictions, targets = _predicted_classes(outputs, labels, self)
        return _mean_per_sample(predictions == targets)

    def margins(self, outputs: Any, labels: Any) -> NDArray[np.float64] | None:
        scores = one_output(outputs, self)
        if scores.dtype.kind in "iub":
            return None
        if scores.ndim == 1 or (scores.ndim == 2 and scores.shape[1] == 1):
            predictions, targets = _predicted_classes(outputs, labels, self)
            distance = np.abs(scores.reshape(-1).astype(np.float64) - 0.5)
            return np.where(predictions == targets, distance, -distance)
        return _margins(*_scores_and_targets(outputs, labels, self), 1)


@metric_registry("F1")
class F1(CollectingMetric):
    """F1 score by scikit-learn; outputs and labels as of ``Accuracy``.

    Which F1 that is does not depend on what a model predicts, so that every model of a run is measured alike.

    Args:
        average: ``binary`` (of class 1; an answer of neither class is wrong), ``micro``, ``macro`` (mean over the
            classes that the labels have), ``weighted``; ``auto`` is binary where the labels are only 0 and 1 and the
            model has no more classes, else macro.
    """

    higher_is_better = True

    def __init__(self, average: str = "auto", compare_label: bool = True) -> None:
        super().__init__()
        if average not in ("auto", "binary", "micro", "macro", "weighted"):
            raise DataError(f"F1: average must be auto, binary, micro, macro or weighted, not {average!r}")
        self._average = average
        self._at_most_two_classes = True
        self.compare_label = compare_label

    def prepare(self, outputs: Any, labels: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        found = one_output(outputs, self)
        self._at_most_two_classes = found.dtype.kind in "iub" or found.ndim == 1 or found.shape[-1] <= 2
        predictions, targets = _predicted_classes(outputs, labels, self)
        return predictions.reshape(-1), targets.reshape(-1)

    def compute(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        from sklearn.metrics import f1_score

        classes, average = np.unique(labels), self._average
        if average == "auto":
            average = "binary" if self._at_most_two_classes and {*classes} <= {0, 1} else "macro"
        if average == "binary" and len({*classes, 1}) > 2:
            raise DataError(
                f"F1: average binary is of two classes, 1 and another, and the labels have {len(classes)}: "
                f"{', '.join(map(str, classes[:5]))}{', ...' if len(classes) > 5 else ''}"
            )
        if average == "binary":
            # An answer that is neither of the two classes, NaN above all, counts as the wrong one.
            positive = labels == 1
            return float(f1_score(positive, positive == (predictions == labels), zero_division=0.0))
        # Of itself scikit-learn takes in the classes that are only predicted, and with them NaN.
        counted = classes if average == "macro" else None
        return float(f1_score(labels, predictions, labels=counted, average=average, zero_division=0.0))


@metric_registry("ROC", "AUC")
class ROC(CollectingMetric):
    """Area under the ROC curve by scikit-learn.

    Outputs are scores of class 1, [n] or [n, 1], or of both classes, [n, 2]; for more classes, probabilities
    [n, classes] that sum to 1 (one against the rest, macro mean). Labels [n].

    Args:
        task: Named in the 1.x YAML; makes no difference.
    """

    higher_is_better = True

    def __init__(self, task: str = "") -> None:
        super().__init__()

    def prepare(self, outputs: Any, labels: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        scores, targets = one_output(outputs, self), one_label(labels, self).reshape(-1)
        if scores.ndim == 2 and scores.shape[1] == 2:
            scores = scores[:, 1].astype(np.float64) - scores[:, 0]
        if scores.ndim == 2 and scores.shape[1] == 1:
            scores = scores[:, 0]
        if scores.ndim > 2 or len(scores) != len(targets):
            raise _misfit(self, scores, targets)
        return scores, targets

    def compute(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        from sklearn.metrics import roc_auc_score

        if not np.all(np.isfinite(predictions)):
            return float("nan")
        return float(roc_auc_score(labels, predictions, multi_class="ovr" if predictions.ndim == 2 else "raise"))


def _among_top(scores: NDArray[Any], targets: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    if k == 1:  # the common case, several times faster; max is NaN where any score is
        best: NDArray[np.bool_] = (scores.argmax(axis=-1) == targets) & ~np.isnan(scores.max(axis=-1))
        return best
    own = np.take_along_axis(scores, targets[..., np.newaxis], axis=-1)
    tied_before = (scores == own) & (np.arange(scores.shape[-1]) < targets[..., np.newaxis])
    ahead = np.count_nonzero((scores > own) | tied_before, axis=-1)
    among: NDArray[np.bool_] = (ahead < k) & ~np.isnan(scores).any(axis=-1)
    return among


def _scores_and_targets(outputs: Any, labels: Any, metric: Metric) -> tuple[NDArray[Any], NDArray[np.int64]]:
    scores, targets = one_output(outputs, metric), one_label(labels, metric)
    if scores.ndim < 2:
        raise _misfit(metric, scores, targets)
    return scores, _targets(targets, scores.shape[:-1], scores, metric, classes=scores.shape[-1])


def _predicted_classes(outputs: Any, labels: Any, metric: Metric) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicted and wanted class ids; where scores are NaN the prediction is -1, which is no class."""
    found, targets = one_output(outputs, metric), one_label(labels, metric)
    if found.dtype.kind in "iub":
        return found.astype(np.int64), _targets(targets, found.shape, found, metric)
    if found.ndim == 1 or (found.ndim == 2 and found.shape[1] == 1):
        flat = found.reshape(-1)
        if not metric.compare_label:
            targets = targets.reshape(-1) > 0.5
        return np.where(np.isnan(flat), -1, flat > 0.5), _targets(targets, flat.shape, found, metric, classes=2)
    wanted = _targets(targets, found.shape[:-1], found, metric, classes=found.shape[-1])
    predicted = found.argmax(axis=-1)
    return np.where(np.isnan(found.max(axis=-1)), -1, predicted), wanted


def _targets(
    labels: NDArray[Any], shape: tuple[int, ...], outputs: NDArray[Any], metric: Metric, classes: int | None = None
) -> NDArray[np.int64]:
    """Class ids of ``shape``; of fp32 scores, where those are the labels, the best class."""
    if not metric.compare_label and labels.shape == outputs.shape and labels.dtype.kind == "f":
        labels = labels.argmax(axis=-1)
    if labels.shape != shape and labels.size == int(np.prod(shape)) and labels.shape[:1] == shape[:1]:
        labels = labels.reshape(shape)
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)))
    if labels.shape != shape or not whole:
        raise _misfit(metric, outputs, labels)
    targets = labels.astype(np.int64)
    if classes is not None and targets.size and not (targets.min() >= 0 and targets.max() < classes):
        raise DataError(
            f"{type(metric).__name__}: labels go from {targets.min()} to {targets.max()} but the model has {classes} "
            f"classes, 0 to {classes - 1}; shift them with postprocess LabelShift"
        )
    return targets


def _margins(scores: NDArray[Any], targets: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """The label's score less the ``k``-th best of the other classes; the smallest one of a sample with several."""
    others = scores.astype(np.float64)
    own = np.take_along_axis(others, targets[..., np.newaxis], axis=-1)[..., 0]
    np.put_along_axis(others, targets[..., np.newaxis], -np.inf, axis=-1)
    rival = others.max(axis=-1) if k == 1 else np.partition(others, -k, axis=-1)[..., -k]
    smallest: NDArray[np.float64] = (own - rival).reshape(len(own), -1).min(axis=1)
    return smallest


def _mean_per_sample(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = right.reshape(len(right), -1).mean(axis=1, dtype=np.float64)
    return means


def _misfit(metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]) -> DataError:
    return DataError(
        f"{type(metric).__name__}: outputs {outputs.dtype}{list(outputs.shape)} and labels "
        f"{labels.dtype}{list(labels.shape)} do not fit: {(type(metric).__doc__ or '').splitlines()[0]}"
    )
