"""Which of the trials that meet the criterion wins.

Every objective is turned into a ratio to fp32 (below 1 is better) and the weighted sum is minimised. A measured
latency is only known up to its interval, so all trials whose interval overlaps that of the leader form the tie set;
of it the model with the fewest bytes wins, then the lowest trial id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distune.config.job import ObjectiveSpec
from distune.strategies.stage import Trial


@dataclass(frozen=True)
class Score:
    """The weighted sum of a trial's objectives, with the bounds that the latency interval gives it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Baseline:
    """What objectives are measured against: fp32's accuracy, its direction, fp32's bytes and metrics."""

    accuracy: float
    size_bytes: int
    higher_is_better: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The winner and how it came about.

    Attributes:
        trial: The winner.
        tied: Ids of all trials that could not be told apart from the leader, the winner included.
    """

    trial: Trial
    tied: tuple[int, ...]


def score(trial: Trial, objectives: Sequence[ObjectiveSpec], baseline: Baseline) -> Score | None:
    """The trial's score, ``None`` where something that an objective needs was not measured."""
    value = low = high = 0.0
    for objective in objectives:
        bounds = _ratio(trial, objective, baseline)
        if bounds is None:
            return None
        value += objective.weight * bounds[0]
        low += objective.weight * bounds[1]
        high += objective.weight * bounds[2]
    return Score(value, low, high)


def choose(trials: Sequence[Trial], objectives: Sequence[ObjectiveSpec], baseline: Baseline) -> Choice | None:
    """The winner among ``trials``; those that could not be scored count only where none could.

    Returns:
        ``None`` when there are no trials.
    """
    scored = [(found, trial) for trial in trials if (found := score(trial, objectives, baseline)) is not None]
    if not scored:
        first = min(trials, key=_tie_break, default=None)
        return None if first is None else Choice(first, (first.id,))
    leader = min(scored, key=lambda pair: (pair[0].value, *_tie_break(pair[1])))[0]
    tied = [trial for found, trial in scored if found.low <= leader.high and leader.low <= found.high]
    return Choice(min(tied, key=_tie_break), tuple(sorted(trial.id for trial in tied)))


def _tie_break(trial: Trial) -> tuple[float, int]:
    return (float("inf") if trial.size_bytes is None else trial.size_bytes, trial.id)


def _ratio(trial: Trial, objective: ObjectiveSpec, baseline: Baseline) -> tuple[float, float, float] | None:
    """Value, lower and upper bound of one objective."""
    if objective.name == "performance":
        latency = trial.latency
        return None if latency is None else (latency.ratio, latency.ci_low, latency.ci_high)
    if objective.name == "modelsize":
        exact = None if trial.size_bytes is None else trial.size_bytes / baseline.size_bytes
    elif objective.name == "footprint":
        exact = trial.footprint_ratio
    elif objective.name == "metric":
        exact = _relative(trial.metrics.get(objective.metric), baseline.metrics.get(objective.metric), objective)
    else:
        # The loss, so that it is minimised like the others; relative where fp32's accuracy gives it a scale.
        scale = (abs(baseline.accuracy) or 1.0) * (1 if baseline.higher_is_better else -1)
        exact = None if trial.accuracy is None else (baseline.accuracy - trial.accuracy) / scale
    return None if exact is None else (exact, exact, exact)


def _relative(value: float | None, fp32: float | None, objective: ObjectiveSpec) -> float | None:
    """A metric of the user's own as a ratio: 1 is what fp32 has, below is better, in units of fp32's value."""
    if value is None or fp32 is None or not math.isfinite(value):
        return None
    gain = (value - fp32) / (abs(fp32) or 1.0)
    return 1.0 - gain if objective.higher_is_better else 1.0 + gain
