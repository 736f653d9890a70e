"""The per-sample form of a metric, as far as it has one: what early verdicts are made from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError
from distune.metrics.base import Metric, PerSampleMetric, UserMetric
from distune.metrics.sums import ExactSum

_ROUNDING = 1e-9
"""How far an outcome may lie outside the metric's bounds, relative to 1 or to itself, whichever is larger."""


_UNLIKE = 1e-3
"""Beyond this, relative to 1 or to itself, a metric's own result is another number than its outcomes make up."""


@dataclass(frozen=True)
class Outcomes:
    """One batch: outcome and weight of each sample, float64 [n]; an outcome of weight w is the sum over w units."""

    values: NDArray[np.float64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class PerSampleForm:
    """A metric as ``finish(sum of outcomes / sum of weights)``.

    Attributes:
        low, high: Bounds of an outcome per unit of weight; one of them may be infinite.
        finish: Monotone.
        ours: The metric itself adds exactly; one of a user's may not, and its number is made of its outcomes instead.
    """

    name: str
    low: float
    high: float
    finish: Callable[[float], float]
    ours: bool
    _read: Callable[[Any, Any], Outcomes]
    _margins: Callable[[Any, Any], Any]

    def read(self, outputs: Any, labels: Any) -> Outcomes:
        """The outcomes of the batch that the metric was updated with last.

        Raises:
            DataError: They are not one number a sample, or not within the bounds that the metric says.
        """
        found = self._read(outputs, labels)
        values, weights = found.values, found.weights
        if values.ndim != 1 or values.shape != weights.shape:
            raise DataError(
                f"metric {self.name!r}: outcomes of shape {list(values.shape)} and weights of shape "
                f"{list(weights.shape)}, where one number a sample is expected"
            )
        known, slack = ~np.isnan(values), _ROUNDING * np.maximum(1.0, np.abs(values))
        below = values + slack < _times(weights, self.low)
        above = values - slack > _times(weights, self.high)
        if (known & (below | above)).any():
            raise DataError(
                f"metric {self.name!r}: outcomes reach from {values.min():g} to {values.max():g}, and the metric says "
                f"that they lie between {self.low:g} and {self.high:g}"
            )
        return found

    def margins(self, outputs: Any, labels: Any, samples: int) -> NDArray[np.float64] | None:
        """Distance of each sample from another outcome, below 0 where it is bad; ``None`` where that is not known.

        Raises:
            DataError: They are not one number for each of the ``samples``.
        """
        found = self._margins(outputs, labels)
        if found is None:
            return None
        margins = _numbers(found, f"metric {self.name!r}: margins")
        if margins.shape != (samples,):
            raise DataError(
                f"metric {self.name!r}: margins of shape {list(margins.shape)} for {samples} samples, where one number "
                "a sample is expected"
            )
        return margins


class OutcomeSum:
    """The value of a metric whose own arithmetic is not ours, made of its outcomes, added without rounding.

    A mean in float32 is off by more than what lies between a model that meets and one that does not, and in another
    order of the samples by something else: an early verdict could not be that of the complete evaluation.
    """

    def __init__(self, form: PerSampleForm) -> None:
        self.form = form
        self._values, self._weights = ExactSum(), ExactSum()

    def take(self, found: Outcomes) -> None:
        """Add a batch."""
        self._values.add(found.values)
        self._weights.add(found.weights)

    def result(self, own: float) -> float:
        """The value.

        Args:
            own: What the metric's ``result()`` gives.

        Raises:
            DataError: That is another one.
        """
        weight = self._weights.value()
        if not weight:
            return own
        value = self.form.finish(self._values.value() / weight)
        if not np.isclose(own, value, rtol=_UNLIKE, atol=_UNLIKE, equal_nan=True):
            raise DataError(
                f"metric {self.form.name!r}: result() gives {own:g}, and its outcomes make up {value:g}; result() must "
                "be the mean of the outcomes, passed through finish(mean) where there is one: mend the metric, or "
                "leave outcomes out (then no trial ends early)"
            )
        return value


def form_of(metric: Metric, name: str) -> PerSampleForm | None:
    """The per-sample form of ``metric``; ``None`` where it has none, or no bounds.

    Metrics that compare with the fp32 model's outputs (``compare_label: false``) have none.
    """
    if not metric.compare_label:
        return None
    form: PerSampleForm | None = None
    if isinstance(metric, PerSampleMetric):
        ours = type(metric).__module__.startswith("distune.")
        form = PerSampleForm(
            name,
            metric.outcome_low,
            metric.outcome_high,
            metric.finish,
            ours,
            lambda outputs, labels: Outcomes(*metric.latest),
            metric.margins,
        )
    elif isinstance(metric, UserMetric) and metric.per_sample:
        form = PerSampleForm(
            name,
            metric.bound("outcome_low"),
            metric.bound("outcome_high"),
            lambda mean: _or(metric.ask("finish", mean), mean),
            False,
            lambda outputs, labels: _of_user(metric, name, outputs, labels),
            lambda outputs, labels: metric.ask("margins", outputs, labels),
        )
    return None if form is None or (math.isinf(form.low) and math.isinf(form.high)) else form


def _of_user(metric: UserMetric, name: str, outputs: Any, labels: Any) -> Outcomes:
    values = _numbers(metric.ask("outcomes", outputs, labels), f"metric {name!r}: outcomes")
    weights = metric.ask("weights", outputs, labels)
    weighed = np.ones(values.shape) if weights is None else _numbers(weights, f"metric {name!r}: weights")
    return Outcomes(values, weighed)


def _numbers(found: Any, what: str) -> NDArray[np.float64]:
    try:
        return np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are no array of numbers: {error}") from error


def _or(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _times(weights: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """``weights * bound`` with nothing undefined where a weight is 0."""
    return np.full(weights.shape, bound) if math.isinf(bound) else weights * bound
