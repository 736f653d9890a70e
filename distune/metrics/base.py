"""Base classes of metrics, their registry, and the adapter for metrics of the user's own.

A metric is fed batch by batch (``update``), asked once (``result``) and emptied before the next model (``reset``).
What it gets is a batch of the model's outputs after postprocessing (one array where the model has one output, else a
list) and the labels. One whose result is a mean over samples derives from ``PerSampleMetric``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.config.imports import import_object
from distune.config.job import ComponentSpec
from distune.data.batch import to_array
from distune.data.registry import ComponentRegistry, names_user_code
from distune.data.user_code import user_code
from distune.errors import DataError, UserCodeError
from distune.metrics.sums import ExactSum


class Metric(ABC):
    """Accumulates over batches.

    Attributes:
        higher_is_better: The metric's direction; ``None`` is that of ``accuracy_criterion``.
        compare_label: False where the fp32 model's predictions take the labels' place.
    """

    higher_is_better: bool | None = None
    compare_label: bool = True

    @abstractmethod
    def update(self, outputs: Any, labels: Any) -> None:
        """Take in one batch.

        Raises:
            DataError: Shapes or values do not fit the metric.
        """

    @abstractmethod
    def result(self) -> float:
        """The metric over everything since ``reset``; NaN where it is undefined."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""


class PerSampleMetric(Metric):
    """A metric that is a function of the mean of per-sample outcomes.

    This form is what early verdicts rest on: with bounds of the outcomes, samples that were not seen yet can change
    the result by so much only. Without bounds (the default) every evaluation runs in full.

    Attributes:
        outcome_low, outcome_high: Bounds of every outcome, per unit of weight.
        latest: Outcomes and weights of the samples of the last ``update``, float64 [n] each.
    """

    outcome_low: float = -math.inf
    outcome_high: float = math.inf

    def __init__(self) -> None:
        self.reset()

    @abstractmethod
    def outcomes(self, outputs: Any, labels: Any) -> NDArray[np.float64]:
        """Outcome of each sample of the batch, float64 [n]; one with weight w is the sum over w units."""

    def weights(self, outputs: Any, labels: Any) -> NDArray[np.float64] | None:
        """What each sample weighs in the mean, float64 [n], ``None`` where all weigh 1. The same for every model."""
        return None

    def margins(self, outputs: Any, labels: Any) -> NDArray[np.float64] | None:
        """How far each sample's outputs are from another outcome, float64 [n]: below 0 where the outcome is bad.

        A sample of the smallest magnitude is the first that a small change of the model can flip. ``None`` where
        outcomes say no such thing.
        """
        return None

    def finish(self, mean: float) -> float:
        """The result from the mean outcome; it must be monotone."""
        return mean

    def update(self, outputs: Any, labels: Any) -> None:
        outcomes = np.asarray(self.outcomes(outputs, labels), np.float64)
        weights = self.weights(outputs, labels)
        self.latest = (outcomes, np.ones(len(outcomes)) if weights is None else weights)
        self._sum.add(self.latest[0])
        self._weight.add(self.latest[1])

    def result(self) -> float:
        weight = self._weight.value()
        if weight == 0:
            raise DataError(f"{type(self).__name__}: no samples")
        return self.finish(self._sum.value() / weight)

    def reset(self) -> None:
        self._sum, self._weight = ExactSum(), ExactSum()  # the same result in any order of the samples
        self.latest = (np.zeros(0), np.zeros(0))


class CollectingMetric(Metric):
    """A metric that needs all predictions at once."""

    def __init__(self) -> None:
        self._predictions: list[NDArray[Any]] = []
        self._labels: list[NDArray[Any]] = []

    @abstractmethod
    def prepare(self, outputs: Any, labels: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """What is kept of one batch: predictions and labels, axis 0 the samples."""

    @abstractmethod
    def compute(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        """The metric over all samples."""

    def update(self, outputs: Any, labels: Any) -> None:
        predictions, kept = self.prepare(outputs, labels)
        self._predictions.append(predictions)
        self._labels.append(kept)

    def result(self) -> float:
        if not self._predictions:
            raise DataError(f"{type(self).__name__}: no samples")
        predictions, labels = np.concatenate(self._predictions), np.concatenate(self._labels)
        try:
            return float(self.compute(predictions, labels))
        except ValueError as error:
            raise DataError(f"{type(self).__name__}: {error}") from error

    def reset(self) -> None:
        self._predictions, self._labels = [], []


METRICS: ComponentRegistry[Metric] = ComponentRegistry("metric", "distune.metrics")

metric_registry = METRICS.register


def metrics() -> Mapping[str, frozenset[str]]:
    """Parameter names of every registered metric, by name."""
    return METRICS.known()


def create_metric(metric: ComponentSpec | Any) -> Metric:
    """A metric ready for use.

    Args:
        metric: A registered name with its arguments, ``module:name`` of the user's class, or a live object or class
            with ``update(predictions, labels)``, ``result()`` and ``reset()``.

    Raises:
        DataError: Unknown name or arguments, or the object lacks one of the three methods.
        UserCodeError: The user's class raised.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, ComponentSpec):
        if not names_user_code(metric.name):
            return METRICS.create(metric)
        what, found, args = f"metric {metric.name!r}", import_object(metric.name, "metric"), metric.args
    else:
        name = metric.__name__ if isinstance(metric, type) else type(metric).__name__
        what, found, args = f"metric {name!r}", metric, {}
    if isinstance(found, type):
        with user_code(what):
            found = found(**args)
    return found if isinstance(found, Metric) else UserMetric(found, what)


class UserMetric(Metric):
    """A metric of the user's that derives from nothing of ours.

    Where it has ``outcomes(predictions, labels)``, and says with ``outcome_low`` and ``outcome_high`` between what they
    lie, trials may end early: its ``result()`` must then be the mean of the outcomes (passed through ``finish``, where
    it has one). ``weights`` and ``margins`` are used too, all as in ``PerSampleMetric``.

    Attributes:
        per_sample: It has ``outcomes``.
    """

    def __init__(self, metric: Any, what: str) -> None:
        missing = [name for name in ("update", "result", "reset") if not callable(getattr(metric, name, None))]
        if missing:
            raise DataError(
                f"{what} lacks {', '.join(missing)}; a metric has update(predictions, labels), result(), reset()"
            )
        self._metric = metric
        self._what = what
        self.per_sample = callable(getattr(metric, "outcomes", None))
        declared = getattr(metric, "higher_is_better", None)
        self.higher_is_better = None if declared is None else bool(declared)
        self.compare_label = bool(getattr(metric, "compare_label", True))

    def update(self, outputs: Any, labels: Any) -> None:
        with user_code(self._what):
            self._metric.update(outputs, labels)

    def result(self) -> float:
        with user_code(self._what):
            value = self._metric.result()
        return as_number(value, f"{self._what}: result()")

    def reset(self) -> None:
        with user_code(self._what):
            self._metric.reset()

    def ask(self, method: str, *args: Any) -> Any:
        """What the user's method of this name returns; ``None`` where there is none."""
        found = getattr(self._metric, method, None)
        with user_code(self._what):
            return None if found is None else found(*args)

    def bound(self, name: str) -> float:
        """``outcome_low`` or ``outcome_high``; infinite where the user's class does not say."""
        unknown = -math.inf if name == "outcome_low" else math.inf
        return as_number(getattr(self._metric, name, unknown), f"{self._what}: {name}")


def as_number(value: Any, what: str) -> float:
    """A float of what a function of the user's returned; NaN passes.

    Accepted are int, float and everything with one real number and no axes (NumPy scalars, 0-d arrays and tensors).

    Raises:
        UserCodeError: Anything else; bools too, since they are most likely a mistake.
    """
    plain = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        shape = f" of shape {tuple(value.shape)}" if getattr(value, "ndim", 0) else ""
        raise UserCodeError(
            f"{what} must return one number; it returned a {type(value).__name__}{shape}: {value!r:.120}"
        )
    return float(plain)


def one_output(outputs: Any, metric: Metric) -> NDArray[Any]:
    """The only output of the model.

    Raises:
        DataError: There are several.
    """
    if isinstance(outputs, list | tuple):
        if len(outputs) != 1:
            raise DataError(
                f"{type(metric).__name__} works on one output and the model gives {len(outputs)}: pick one with a "
                "postprocess of your own (module:callable), or with model.outputs"
            )
        outputs = outputs[0]
    return to_array(outputs)


def one_label(labels: Any, metric: Metric) -> NDArray[Any]:
    """The only label array.

    Raises:
        DataError: There is none, or there are several.
    """
    if labels is None:
        raise DataError(f"{type(metric).__name__} needs labels and the data have none")
    if isinstance(labels, list | tuple):
        if len(labels) != 1:
            raise DataError(f"{type(metric).__name__} works on one label array and the data give {len(labels)}")
        labels = labels[0]
    return to_array(labels)
