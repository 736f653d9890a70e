"""The minimality pass: no op of an accepted model stays in floating point for nothing.

The search for a model that meets stops with the first that does, or takes whole blocks and op types at once, so some
of its ops may be in floating point without need. Here they are given back to integers, the least harmful first, a few
parts at a time: parts that meet and are not slower are joined, parts of several groups that do not are halved, and a
single group that does not is tried once more, as another trial of the run has quantized it.
What comes of it is more trials that meet; the objective chooses among all of them, so nothing gets worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from operator import ne

from distune.engine.book import TrialBook
from distune.space.op_config import OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Candidate, Stage, StageResult, Trial

NAME = "refine"
TOGETHER = 4
"""Parts that are tried at a time. Not a matter of the number of ranks: the decisions are the same for any."""

WAYS = 2
"""Ways to quantize a single group that are tried: what does harm in two ways mostly does in all."""


@dataclass(frozen=True)
class Part:
    """Groups that are given back together.

    Attributes:
        way: Which of the ways to quantize them that the run's trials know.
    """

    groups: tuple[str, ...]
    way: int = 0


@dataclass(frozen=True)
class Refinement:
    """See the module's description.

    Attributes:
        space: The tuning space.
        book: The run's trials, with a budget for this pass.
        judge: Has a stage judged.
        not_slower: Whether the first trial is, by the objectives, no worse than the second as far as can be told.
        order: Groups in the order in which fallback took them, the most harmful first.
    """

    space: TuningSpace
    book: TrialBook
    judge: Callable[[Stage], StageResult]
    not_slower: Callable[[Trial, Trial], bool]
    order: tuple[str, ...] = ()

    def run(self, accepted: Trial) -> Trial:
        """Give groups of ``accepted`` back while the budget lasts; the last trial that was taken."""
        base = accepted
        floating = self._least_harmful_first(accepted.config)
        # One by one, with a join after each batch, where the budget has that; else several groups at once.
        one_by_one = len(floating) + ceil(len(floating) / TOGETHER) <= self.book.remaining
        pending = [Part(groups) for groups in _split(floating, len(floating) if one_by_one else TOGETHER)]
        while pending and self.book.remaining:
            batch, pending = pending[:TOGETHER], pending[TOGETHER:]
            donors = self._donors(base.config)
            result = self.judge(self._stage(base, [[part] for part in batch], donors, "none"))
            good = [part for part, trial in zip(batch, result.trials, strict=False) if self._taken(trial, base)]
            for part in batch[: len(result.trials)]:
                if part not in good:
                    pending += self._instead(part, donors)
            finished = result.finished
            if good:
                alone = result.trials[batch.index(good[0])]
                joined, finished = (None, True) if finished else self._joined(base, good, donors)
                base = alone if joined is None else joined
            if finished:
                break
        return base

    def given_back(self, before: TuningConfig, after: TuningConfig) -> tuple[str, ...]:
        """Groups that are in floating point in ``before`` and quantized in ``after``, in graph order."""
        quantized = set(after.quantized_ops)
        return tuple(group for group in self._floating(before) if quantized.intersection(self.space.groups[group]))

    def _instead(self, part: Part, donors: Sequence[TuningConfig]) -> list[Part]:
        """What to try of a part that was not taken: its halves, or a single group in another way."""
        if len(part.groups) > 1:
            return [Part(groups) for groups in _split(part.groups, 2)]
        ways = min(WAYS, len(self._ways(part.groups[0], donors)))
        return [replace(part, way=part.way + 1)] if part.way + 1 < ways else []

    def _joined(self, base: Trial, good: Sequence[Part], donors: Sequence[TuningConfig]) -> tuple[Trial | None, bool]:
        """The largest join of parts that meet alone, the most harmful left out first; and whether the run is over."""
        if len(good) < 2 or not self.book.remaining:
            return None, False
        unions = [good[:count] for count in range(len(good), 1, -1)]
        result = self.judge(self._stage(base, unions, donors, "first"))
        last = result.trials[-1] if result.trials else None
        return last if last is not None and self._taken(last, base) else None, result.finished

    def _stage(self, base: Trial, unions: Sequence[Sequence[Part]], donors: Sequence[TuningConfig], how: str) -> Stage:
        candidates = [Candidate(self._with(base.config, parts, donors), _label(parts)) for parts in unions]
        if how == "first":
            return Stage(f"{NAME}, together", candidates, use="prefix", accuracy="verdict", ends_run=False)
        return Stage(NAME, candidates, exit="none", use="best", accuracy="verdict", ends_run=False)

    def _taken(self, trial: Trial, base: Trial) -> bool:
        return trial.met and self.not_slower(trial, base)

    def _with(self, config: TuningConfig, parts: Sequence[Part], donors: Sequence[TuningConfig]) -> TuningConfig:
        """``config`` with the groups of ``parts`` quantized."""
        changes: dict[str, OpConfig] = {}
        for part in parts:
            for group in part.groups:
                changes.update(zip(self.space.groups[group], self._ways(group, donors)[part.way], strict=True))
        sampling_size = config.sampling_size or self.space.sampling_sizes[0]
        return self.space.effective(replace(config.with_ops(changes), sampling_size=sampling_size))

    def _ways(self, group: str, donors: Sequence[TuningConfig]) -> list[tuple[OpConfig, ...]]:
        """How ``donors`` quantize the ops of a group, each way once."""
        names = self.space.groups[group]
        found = [tuple(donor.by_name[name] for name in names) for donor in donors]
        return list(dict.fromkeys(way for way in found if any(option.is_quantized for option in way)))

    def _donors(self, config: TuningConfig) -> list[TuningConfig]:
        """Configs to take options from: those that meet, the most accurate first, then those most like ``config``.

        Of what does not meet the accuracy may be unknown, where the trial ended early: it must not decide.
        """
        accurate = sorted(self.book.met, key=lambda trial: trial.accuracy or 0.0, reverse=self.book.higher_is_better)
        others = [trial for trial in self.book.trials if not trial.met and trial.verdict != "failed"]
        alike = sorted(others, key=lambda trial: sum(map(ne, trial.config.ops, config.ops)))
        return [*(trial.config for trial in (*accurate, *alike)), self.space.default()]

    def _floating(self, config: TuningConfig) -> list[str]:
        """Groups in floating point that the user does not want there."""
        options, default = config.by_name, self.space.default().by_name
        return [
            group
            for group, names in self.space.groups.items()
            if not any(options[name].is_quantized for name in names)
            and any(default[name].is_quantized for name in names)
        ]

    def _least_harmful_first(self, config: TuningConfig) -> tuple[str, ...]:
        """Groups that no order names were not found to do harm: they come first."""
        place = {group: index for index, group in enumerate(self.order)}
        return tuple(sorted(self._floating(config), key=lambda group: -place.get(group, len(place))))


def _split(groups: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """``groups`` in at most ``count`` parts of about the same size."""
    count = min(count, len(groups))
    borders = [len(groups) * index // count for index in range(count + 1)] if count else []
    return [tuple(groups[start:end]) for start, end in pairwise(borders)]


def _label(parts: Sequence[Part]) -> str:
    groups = [group for part in parts for group in part.groups]
    return groups[0] if len(groups) == 1 else f"{len(groups)} groups, {groups[0]} to {groups[-1]}"
