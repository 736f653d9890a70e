"""When the samples that were not seen yet cannot change a verdict any more.

A bound, not a guess: the unseen samples are put at their best and at their worst, and only where even the best case
fails is a trial given up. What passes is always seen to the end. The arithmetic leaves no gap: outcomes are summed
exactly, and everything that follows (one division, a monotone function, a weighted mean) rounds monotonically, so the
bounds hold for the very number that the complete evaluation computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distune.errors import UserCodeError
from distune.evaluation.criterion import Target, meets
from distune.metrics.per_sample import Outcomes, PerSampleForm
from distune.metrics.sums import ExactSum


@dataclass(frozen=True)
class Demand:
    """What an evaluation has to find out.

    Attributes:
        targets: What must be met, all of it: by the metric of that name, or by the accuracy itself under ``""``.
        floor: Accuracies that are not worse than this must be known exactly although they fail; ``None``: none must.
        higher_is_better: Direction of the accuracy, and so of ``floor``.
        accuracy: ``exact``: the value, whatever it is. ``verdict``: whether the targets are met. ``ranking``: how the
            model does on the decisive samples, and the verdict only where it promises to meet there.
    """

    targets: tuple[tuple[str, Target], ...] = ()
    floor: float | None = None
    higher_is_better: bool = True
    accuracy: Literal["verdict", "ranking", "exact"] = "exact"


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest possible value."""

    low: float
    high: float

    def fails(self, target: float, higher_is_better: bool) -> bool:
        """Even the best case does not meet ``target``."""
        return not meets(self.high if higher_is_better else self.low, target, higher_is_better)


class VerdictBounds:
    """Follows one evaluation and knows what its result can still become.

    Args:
        forms: The metrics.
        totals: Weight of all samples, by metric.
        combine: The accuracy from the metrics' values; monotone (growing) in each.
        demand: What is asked.
    """

    def __init__(
        self,
        forms: Sequence[PerSampleForm],
        totals: Sequence[float],
        combine: Callable[[Sequence[float]], float],
        demand: Demand,
    ) -> None:
        self._forms = forms
        self._totals = totals
        self._combine = combine
        self._demand = demand
        self._sums = [ExactSum() for _ in forms]
        self._weights = [ExactSum() for _ in forms]

    def take(self, outcomes: Sequence[Outcomes]) -> None:
        """Outcomes of a batch, by metric."""
        for found, total, weight in zip(outcomes, self._sums, self._weights, strict=True):
            total.add(found.values)
            weight.add(found.weights)

    @property
    def settled(self) -> bool:
        """The demand is answered whatever the unseen samples say: the verdict is that it fails."""
        demand = self._demand
        if demand.accuracy == "exact" or not self.failed:
            return False
        return demand.floor is None or self.accuracy.fails(demand.floor, demand.higher_is_better)

    @property
    def failed(self) -> bool:
        """Some target is out of reach."""
        by_name = self.metrics
        return any(
            (by_name[name] if name else self.accuracy).fails(target.value, target.higher_is_better)
            for name, target in self._demand.targets
        )

    @property
    def metrics(self) -> Mapping[str, Bounds]:
        """Bounds of every metric, by name."""
        return {
            form.name: _bounds(form, total, weight.value(), whole)
            for form, total, weight, whole in zip(self._forms, self._sums, self._weights, self._totals, strict=True)
        }

    @property
    def accuracy(self) -> Bounds:
        """Bounds of the accuracy."""
        found = list(self.metrics.values())
        if math.isnan(self._combine([each.low if math.isnan(each.low) else 0.0 for each in found])):
            return Bounds(math.nan, math.nan)
        low, high = (self._combine([getattr(each, side) for each in found]) for side in ("low", "high"))
        # A metric without an upper bound that weighs nothing: the weighted mean is undefined, so it says nothing.
        return Bounds(-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def _bounds(form: PerSampleForm, total: ExactSum, seen: float, whole: float) -> Bounds:
    unseen = max(0.0, whole - seen)
    ends = [
        _value(form, total, _rest(unseen, form.low, -math.inf), whole),
        _value(form, total, _rest(unseen, form.high, math.inf), whole),
    ]
    if any(math.isnan(end) for end in ends):
        # A NaN among the outcomes decides; one from an infinite bound only says that this side is open.
        if math.isnan(total.value()):
            return Bounds(math.nan, math.nan)
        return Bounds(-math.inf, math.inf)
    return Bounds(min(ends), max(ends))


def _value(form: PerSampleForm, total: ExactSum, rest: float, whole: float) -> float:
    """The metric where the unseen outcomes sum up to ``rest``; NaN where it has no value there."""
    try:
        return form.finish(total.value([rest]) / whole)
    except (ValueError, ArithmeticError):
        return math.nan
    except UserCodeError as error:
        if isinstance(error.__cause__, ValueError | ArithmeticError):
            return math.nan
        raise


def _rest(unseen: float, outcome: float, outwards: float) -> float:
    """``unseen * outcome``; where it must be rounded, ``outwards``."""
    if unseen == 0 or outcome == 0:
        return 0.0
    rest = unseen * outcome
    exact = math.isinf(rest) or abs(outcome) == 1 or (outcome.is_integer() and unseen * abs(outcome) < 2.0**53)
    return rest if exact else math.nextafter(rest, outwards)
