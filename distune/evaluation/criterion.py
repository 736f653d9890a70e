"""The accuracy that must be kept, and the verdict on a measured one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from distune.config.job import CriterionSpec, EvaluationSpec
from distune.config.parameters import TuningMetric
from distune.errors import UsageError


def target_accuracy(criterion: CriterionSpec, baseline: float) -> float:
    """The accuracy that a trial must reach.

    Relative: the loss allowed is ``tolerance * |baseline|``, so that a negative baseline does not turn the criterion
    round; absolute: ``tolerance``. A threshold is the target itself.

    The tolerance is the decimal number that was written (0.01 is no float), and the baseline a share such as 27 of 100,
    which its float misses by half a unit in the last place at most. So the target is computed exactly and rounded to
    the side of what it may be: a trial that loses exactly what is allowed meets.

    Returns:
        The target, in the metric's unit; NaN where the baseline is not finite (nothing meets it).
    """
    if criterion.kind == "threshold":
        return criterion.tolerance
    if not math.isfinite(baseline):
        return math.nan
    share, tolerance = Fraction(baseline), Fraction(str(criterion.tolerance))
    allowed = tolerance * abs(share) if criterion.kind == "relative" else tolerance
    allowed += Fraction(math.ulp(baseline)) / 2 if baseline else 0
    return _rounded(share - allowed, -math.inf) if criterion.higher_is_better else _rounded(share + allowed, math.inf)


def _rounded(exact: Fraction, towards: float) -> float:
    """The float next to ``exact`` on that side."""
    nearest = float(exact)
    beyond = nearest > exact if towards < 0 else nearest < exact
    return math.nextafter(nearest, towards) if beyond else nearest


def meets(value: float, target: float, higher_is_better: bool) -> bool:
    """Whether ``value`` reaches ``target``. Exactly on target meets; NaN never does."""
    if math.isnan(value) or math.isnan(target):
        return False
    return value >= target if higher_is_better else value <= target


@dataclass(frozen=True)
class Target:
    """What one of several metrics must reach."""

    value: float
    higher_is_better: bool


def metric_targets(
    criterion: CriterionSpec, baseline: Mapping[str, float], directions: Mapping[str, bool]
) -> dict[str, Target]:
    """The target of every metric where each must meet on its own, with the tolerance of the criterion.

    Args:
        baseline: Every metric of the fp32 model.
        directions: Whether higher is better, by metric.
    """
    return {
        name: Target(target_accuracy(replace(criterion, higher_is_better=directions[name]), value), directions[name])
        for name, value in baseline.items()
    }


def threshold_targets(metrics: Iterable[TuningMetric]) -> dict[str, Target]:
    """What each metric with ``strategy: constraint`` must reach."""
    return {
        metric.name: Target(metric.threshold, metric.higher_is_better)
        for metric in metrics
        if metric.strategy == "constraint" and metric.threshold is not None
    }


def all_meet(metrics: Mapping[str, float], targets: Mapping[str, Target]) -> bool:
    """Whether every metric reaches its target; one that is missing does not."""
    return all(
        meets(metrics.get(name, math.nan), target.value, target.higher_is_better) for name, target in targets.items()
    )


def check_directions(evaluation: EvaluationSpec, criterion: CriterionSpec, directions: Mapping[str, bool]) -> None:
    """A criterion that looks the wrong way would accept every damage and refuse every gain.

    Args:
        directions: Whether higher is better, by metric, in their order; the criterion's where a metric says nothing.

    Raises:
        UsageError: A metric says otherwise than the criterion.
    """
    for name, higher in directions.items():
        if higher != criterion.higher_is_better:
            raise UsageError(
                f"{'higher' if higher else 'lower'} is better for the metric {name}, and accuracy_criterion says "
                f"otherwise; set its higher_is_better to {str(higher).lower()}"
            )
        if evaluation.each_must_meet:
            return  # the first one stands for the accuracy; the others are compared in their own direction


def better(a: float, b: float, higher_is_better: bool) -> bool:
    """Whether accuracy ``a`` is strictly better than ``b``; NaN is worse than everything else."""
    if math.isnan(a):
        return False
    if math.isnan(b):
        return True
    return a > b if higher_is_better else a < b


def best_first(value: float | None, higher_is_better: bool) -> tuple[bool, float]:
    """Key that sorts accuracies, or errors, the best first, as ``better`` compares them.

    NaN comes last, and so does ``None``, what is not known.
    """
    if value is None or math.isnan(value):
        return True, 0.0
    return False, -value if higher_is_better else value
