"""Knapsack: the fastest mix of op configs whose predicted accuracy loss stays below what the criterion allows.

Every group of ops has a few choices (integer variants, half precision, fp32). Loss and cost of a mix are modelled as
sums over its groups: the losses begin with a probe of output errors, the costs with what the default config saves, and
both are refitted by ridge regression with every trial, whose accuracy is exact and whose cost (the objectives' weighted
sum, fp32 is 1) is measured. ``scipy.optimize.milp`` finds the cheapest mix for several shares of the allowed loss; they
are judged as one stage, and so on until no mix that is new is predicted to be better, or the budget is spent.

Cf. arXiv:2307.05657 (CLADO: the choice of precisions as an integer program over measured sensitivities) and
arXiv:2505.13060 (measured instead of modelled time gains). The losses are additive here: there are no pair terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import StrategyContext, TuneGenerator, TuneStrategy
from distune.strategies.default import default_config
from distune.strategies.fallback import sensitivity_probe
from distune.strategies.registry import strategy_registry
from distune.strategies.settings import whole_number
from distune.strategies.stage import Candidate, ProbeResult, Stage, StageResult, Trial

_VARIANTS = 3
"""Integer options of a group that are looked at."""
_SHARES = (1.0, 0.85, 0.65, 1.2)
"""Shares of the allowed loss for which a mix is proposed: below 1 for a model that promises too much, above for one
that promises too little. A setting of its own kind: the decisions must not follow the number of ranks."""
_ROUNDS = 8
_PARTS = 12
_NOTICEABLE = 1e-4
"""Part of fp32's cost by which a mix must be predicted to be better, to be worth a trial."""
_HALF_GAIN = 0.3
"""Of an integer op's gain, what half precision is believed to bring before it was measured."""
_STIFFNESS = 1e-3
"""Weight of what was believed before, against one trial."""

Vector = NDArray[np.float64]
Picks = tuple[int, ...]
"""The index of the choice of every group."""


@dataclass(frozen=True)
class Choices:
    """What each group may be.

    Attributes:
        space: The tuning space.
        base: Config that says what the groups do not.
        of: Choices by group; the first is the default one.
    """

    space: TuningSpace
    base: TuningConfig
    of: Mapping[str, tuple[OpConfig, ...]]

    @classmethod
    def among(cls, space: TuningSpace, base: TuningConfig) -> Choices:
        """The choices of every group that is quantized in ``base``."""
        found: dict[str, tuple[OpConfig, ...]] = {}
        for group in space.quantized_groups(base):
            own = base.by_name[space.groups[group][0]]
            halves = [OpConfig(mode) for mode in space.precisions if mode != "fp32"]
            offered = [half for half in halves if half in space.op[space.groups[group][0]].options]
            found[group] = (*_variants(own, space.group_options(group)), *offered, FP32)
        return cls(space, base, found)

    @property
    def count(self) -> int:
        """Choices of all groups."""
        return sum(map(len, self.of.values()))

    def config(self, picks: Picks) -> TuningConfig:
        """The config with choice ``picks[i]`` for group ``i``."""
        changes: dict[str, OpConfig] = {}
        floating: dict[OpConfig, list[str]] = {}
        for (group, options), pick in zip(self.of.items(), picks, strict=True):
            if not options[pick].is_quantized:
                floating.setdefault(options[pick], []).append(group)
            elif pick:
                changes.update(self.space.group_changes(group, options[pick]))
        config = self.base.with_ops(changes)
        for option, groups in floating.items():
            config = self.space.fallback(config, groups, option.mode)
        return self.space.effective(config)

    def row(self, picks: Picks) -> Vector:
        """The picks as zeros and ones over all choices."""
        row = np.zeros(self.count)
        offset = 0
        for options, pick in zip(self.of.values(), picks, strict=True):
            row[offset + pick] = 1.0
            offset += len(options)
        return row

    def picks(self, row: Vector) -> Picks:
        """Inverse of ``row``."""
        borders = np.cumsum([len(options) for options in self.of.values()])[:-1]
        return tuple(int(np.argmax(part)) for part in np.split(row, borders))

    @property
    def options(self) -> list[OpConfig]:
        """All choices, group by group, as in a row."""
        return [option for options in self.of.values() for option in options]


@strategy_registry
class KnapsackTuneStrategy(TuneStrategy):
    """The fastest mix that keeps the accuracy, by integer programming over measured losses and costs."""

    settings: ClassVar = {
        "rounds": f"Rounds of mixes that are proposed and judged at most (default: {_ROUNDS}).",
        "parts": f"Parts of the model whose loss and cost are measured in the beginning, each by a trial with that "
        f"part in fp32 (default: {_PARTS}, at most a third of the budget).",
        "confidence_batches": "Batches that the probed errors are averaged over (default: 2).",
    }

    def __init__(self, space: TuningSpace, context: StrategyContext) -> None:
        super().__init__(space, context)
        self._seen: dict[str, Picks] = {}

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        for key, minimum in (("rounds", 1), ("parts", 0), ("confidence_batches", 1)):
            whole_number(kwargs, key, 1, minimum)

    def next_tune_cfg(self) -> TuneGenerator:
        default = default_config(self.space, self.space.sampling_sizes[0])
        choices = Choices.among(self.space, default)
        first: StageResult = yield Stage("default", [Candidate(default, "default")])
        if not choices.of or first.finished or not first.trials:
            return
        yield self._stage("knapsack, the default's cost", [(default, "default")])
        groups = tuple(choices.of)
        everything = tuple(0 for _ in groups)
        self._seen[default.hash] = everything
        scores: list[Mapping[str, float]] = []
        for variant in range(max(len(options) for options in choices.of.values())):
            picks = tuple(variant if _has(options, variant) else 0 for options in choices.of.values())
            scored = [group for group, pick in zip(groups, picks, strict=True) if pick == variant]
            if not any(_has(choices.of[group], variant) for group in scored):
                break
            config, batches = choices.config(picks), whole_number(self.context.kwargs, "confidence_batches", 2)
            probe: ProbeResult = yield sensitivity_probe(self.space, config, scored, "fp32", batches)
            scores.append(probe.scores)
            if probe.finished:
                return
        if (yield from self._parts(choices)):
            return
        for number in range(1, whole_number(self.context.kwargs, "rounds", _ROUNDS) + 1):
            mixes = self.context.think(partial(self._propose, choices, scores))
            candidates = [(choices.config(picks), f"predicted cost {cost:.3f}") for picks, cost in mixes]
            for (config, _), (picks, _) in zip(candidates, mixes, strict=True):
                self._seen[config.hash] = picks
            if not candidates:
                return
            result: StageResult = yield self._stage(f"knapsack, round {number}", candidates)
            if result.finished:
                return
        self.context.tell("knapsack: a better mix was still predicted when its rounds were over (setting: rounds)")

    def _stage(self, name: str, candidates: Sequence[tuple[TuningConfig, str]]) -> Stage:
        named = [Candidate(config, label) for config, label in candidates]
        return Stage(name, named, exit="none", use="best", accuracy="exact", latency="all", ends_run=False)

    def _parts(self, choices: Choices) -> Any:
        """Measure neighbouring groups in fp32 at a time; says whether the run is over."""
        groups = list(choices.of)
        limit = whole_number(self.context.kwargs, "parts", _PARTS, minimum=0)
        count = min(limit, len(groups), self.record.remaining // 3)
        candidates = []
        for part in np.array_split(np.arange(len(groups)), count) if count else ():
            inside = set(part.tolist())
            picks = tuple(
                len(options) - 1 if index in inside else 0 for index, options in enumerate(choices.of.values())
            )
            config = choices.config(picks)
            if not config.is_fp32:
                self._seen[config.hash] = picks
                candidates.append((config, " ".join(groups[index] for index in sorted(inside)) + " in fp32"))
        if not candidates:
            return False
        result: StageResult = yield self._stage("knapsack, parts in fp32", candidates)
        return result.finished

    def _propose(self, choices: Choices, scores: Sequence[Mapping[str, float]]) -> list[tuple[Picks, float]]:
        """Mixes that were not judged and are predicted to be better than the best that meets, with their cost."""
        trials = [trial for trial in self.record.trials if trial.config.hash in self._seen]
        allowed = abs(self.record.baseline - self.record.target)
        losses = np.clip(self._losses(choices, scores, trials), 0.0, None)
        costs = self._costs(choices, trials)
        met = [value for trial in trials if trial.met and (value := self.context.score(trial)) is not None]
        limit = min(met, default=np.inf) - _NOTICEABLE
        known = [choices.row(picks) for picks in self._seen.values()]
        proposed: list[tuple[Picks, float]] = []
        for share in _SHARES:
            row = _cheapest(choices, losses, costs, share * allowed, known)
            if row is not None and 1.0 + float(costs @ row) < limit:
                known.append(row)
                proposed.append((choices.picks(row), 1.0 + float(costs @ row)))
        if not proposed and not met:  # no mix is predicted to meet: the one that loses least may
            row = _cheapest(choices, np.zeros_like(losses), losses, 0.0, known)
            if row is not None:
                proposed.append((choices.picks(row), 1.0 + float(costs @ row)))
        return proposed

    def _losses(self, choices: Choices, scores: Sequence[Mapping[str, float]], trials: Sequence[Trial]) -> Vector:
        """Accuracy that each choice loses."""
        sign = 1.0 if self.context.criterion.higher_is_better else -1.0
        believed = np.array(
            [
                scores[pick].get(group, 0.0) if option.is_quantized and pick < len(scores) else 0.0
                for group, options in choices.of.items()
                for pick, option in enumerate(options)
            ]
        )
        # An error that is no number (a tensor overflowed) is as bad as the worst that is one.
        worst = float(believed[np.isfinite(believed)].max(initial=0.0)) or 1.0
        believed = np.clip(np.nan_to_num(believed, nan=worst, posinf=worst), 0.0, None)
        judged = [
            (choices.row(self._seen[trial.config.hash]), sign * (self.record.baseline - trial.accuracy))
            for trial in trials
            if trial.accuracy is not None and np.isfinite(trial.accuracy)
        ]
        if judged and (total := float(judged[0][0] @ believed)) > 0:
            believed *= max(judged[0][1], 0.0) / total  # of the same size as the loss of the default config
        return _fitted(choices, believed, judged)

    def _costs(self, choices: Choices, trials: Sequence[Trial]) -> Vector:
        """What each choice adds to fp32's cost of 1; what saves is negative."""
        judged = [
            (choices.row(self._seen[trial.config.hash]), value - 1.0)
            for trial in trials
            if (value := self.context.score(trial)) is not None
        ]
        gain = (judged[0][1] if judged else -0.5) / len(choices.of)
        believed = [
            gain if option.is_quantized else 0.0 if option == FP32 else _HALF_GAIN * gain for option in choices.options
        ]
        return _fitted(choices, np.array(believed), judged)


def _variants(own: OpConfig, options: Sequence[OpConfig]) -> list[OpConfig]:
    """``own`` and the first options that differ from it in mode, in the activation alone, and in the weight alone."""
    mode = [option for option in options if option.mode != own.mode]
    same = [option for option in options if option.mode == own.mode]
    activation = [option for option in same if option.activation != own.activation and option.weight == own.weight]
    weight = [option for option in same if option.weight != own.weight and option.activation == own.activation]
    return [own, *mode[:1], *activation[:1], *weight[:1]][:_VARIANTS]


def _has(options: Sequence[OpConfig], variant: int) -> bool:
    return variant < len(options) and options[variant].is_quantized


def _fitted(choices: Choices, believed: Vector, judged: Sequence[tuple[Vector, float]]) -> Vector:
    """Least squares over what was judged, drawn to ``believed`` where that says nothing (ridge regression).

    One value a choice, as in a row. FP32 changes nothing, so it stays at 0.
    """
    if not judged:
        return believed
    rows = np.array([row for row, _ in judged])
    values = np.array([value for _, value in judged])
    # Choices that are believed to matter more may differ more from what is believed.
    spread = np.maximum(np.abs(believed), np.abs(believed).mean() / 10 + 1e-12) ** 2
    spread *= [float(option != FP32) for option in choices.options]
    scaled = rows * spread
    kernel = rows @ scaled.T
    ridge = _STIFFNESS * max(float(np.trace(kernel)) / len(judged), 1e-18) * np.eye(len(judged))
    change = scaled.T @ np.linalg.solve(kernel + ridge, values - rows @ believed)
    fitted: Vector = np.round(believed + change, 12)
    return fitted


def _cheapest(
    choices: Choices, losses: Vector, costs: Vector, allowed: float, known: Sequence[Vector]
) -> Vector | None:
    """The cheapest mix that is none of ``known``, has an op quantized and loses at most ``allowed``."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups = np.zeros((len(choices.of), choices.count))
    offset = 0
    for index, options in enumerate(choices.of.values()):
        groups[index, offset : offset + len(options)] = 1.0
        offset += len(options)
    constraints = [
        LinearConstraint(groups, 1.0, 1.0),
        LinearConstraint(np.array([[float(option.is_quantized) for option in choices.options]]), 1.0, np.inf),
        LinearConstraint(losses[None, :], -np.inf, allowed + 1e-12),
    ]
    if known:
        constraints.append(LinearConstraint(np.array(known), -np.inf, len(choices.of) - 1.0))
    found = milp(costs, integrality=np.ones(choices.count), bounds=Bounds(0.0, 1.0), constraints=constraints)
    if found.x is None:
        return None
    row: Vector = np.asarray(found.x, dtype=np.float64).round()
    return row
