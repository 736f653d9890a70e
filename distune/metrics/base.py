"""Base classes of metrics, their registry, and the adapter for metrics of the user's own.

A metric is fed batch by batch (``update``), asked once (``result``) and emptied before the next model (``reset``).
What it gets is a batch of the model's outputs after postprocessing (one array where the model has one output, else a
list) and the labels. One whose result is a mean over samples derives from ``PerSampleMetric``.
"""

from __future__ import annotations

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


class Metric(ABC):
    """Accumulates over batches.

    Attributes:
        higher_is_better: The metric's direction.
        compare_label: False where the fp32 model's predictions take the labels' place.
    """

    higher_is_better: bool = True
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
    """A metric that is a function of the mean of per-sample outcomes."""

    def __init__(self) -> None:
        self._outcomes: list[NDArray[np.float64]] = []

    @abstractmethod
    def outcomes(self, outputs: Any, labels: Any) -> NDArray[np.float64]:
        """Outcome of each sample of the batch, float64 [n]."""

    def finish(self, mean: float) -> float:
        """The result from the mean outcome; it must be monotone."""
        return mean

    def update(self, outputs: Any, labels: Any) -> None:
        self._outcomes.append(self.outcomes(outputs, labels))

    def result(self) -> float:
        if not self._outcomes:
            raise DataError(f"{type(self).__name__}: no samples")
        return self.finish(float(np.mean(np.concatenate(self._outcomes))))

    def reset(self) -> None:
        self._outcomes = []


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
    """A metric of the user's that derives from nothing of ours."""

    def __init__(self, metric: Any, what: str) -> None:
        missing = [name for name in ("update", "result", "reset") if not callable(getattr(metric, name, None))]
        if missing:
            raise DataError(
                f"{what} lacks {', '.join(missing)}; a metric has update(predictions, labels), result(), reset()"
            )
        self._metric = metric
        self._what = what
        self.higher_is_better = bool(getattr(metric, "higher_is_better", True))
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
