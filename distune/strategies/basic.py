"""Basic: default config, recipes, op-type-wise options, then fallback in the order of measured impact.

The stages are those of the ancestor's document: 1 default, 2 all recipes, 3 op-type-wise, 4 recipes one by one,
5.1 block-wise and blocks accumulated, 5.2 instance-wise, 5.3 accumulated fallback. Two of ours come in between: where
the default meets, forms of it that may be faster (``faster``); where it fails, corrections that cost no speed
(``corrections``). With approach ``weight_only`` the presets come first, and bits and algorithm layer by layer after the
default. Each begins with the config that scored best so far, where it is better by more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from distune.evaluation.criterion import best_first, better
from distune.space.op_config import Mode, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import StrategyContext, TuneGenerator, TuneStrategy
from distune.strategies.corrections import correction_stage
from distune.strategies.default import default_config
from distune.strategies.fallback import (
    accumulate,
    accumulated_block_stage,
    block_stage,
    impact_order,
    instance_stage,
    score_order,
    sensitivity_probe,
)
from distune.strategies.faster import faster_stage, has_faster_forms
from distune.strategies.op_type_wise import op_type_wise, op_type_wise_total
from distune.strategies.prefix_search import Search
from distune.strategies.registry import strategy_registry
from distune.strategies.settings import whole_number
from distune.strategies.stage import Candidate, ProbeResult, Stage, StageResult, Trial
from distune.strategies.weight_only import is_weight_only, layer_wise, preset_stage

NOTICEABLE = 0.25
"""Share of the accuracy missing to the target that a config must close to become the base of later stages."""

_NEARLY = 1 - 1e-9
"""Keeps what is just noticeable on the exact side of a floor, however its value was rounded."""

SLOWER = 1.1
"""Latency of a new base, against that of the base before it, at most; beyond it where the intervals say so for sure."""

_LAYER_WISE_TRIALS = 8
"""Trials of the stage that gives single layers more bits, at most."""

_RIVALS = 3
"""Possible bases of a stage whose latency is measured."""


@strategy_registry
class BasicTuneStrategy(TuneStrategy):
    """Default config, recipes, op types, then fallback by measured impact: the default of ``quant_level: 1``."""

    settings: ClassVar = {
        "op_type_wise_trials": "Trials of the op-type-wise stage at most (default: a quarter of the remaining budget, "
        "16 at most); what is left out is reported.",
    }

    def __init__(self, space: TuningSpace, context: StrategyContext) -> None:
        super().__init__(space, context)
        self._lead: Trial | None = None

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        whole_number(kwargs, "op_type_wise_trials", 0, minimum=0)

    def next_tune_cfg(self) -> TuneGenerator:
        for sampling_size in self.space.sampling_sizes:
            yield from self._with_sampling_size(sampling_size)

    def _with_sampling_size(self, sampling_size: int) -> TuneGenerator:
        # The base of the later stages is the best of these ones, not of the run: the most accurate trial of a run is
        # one that fell back nearly everywhere (of another sampling size, or of another strategy before this one).
        self._lead = None
        weight_only = is_weight_only(self.space)
        presets = preset_stage(self.space, sampling_size) if weight_only else None
        if presets is not None and presets.candidates and (yield from self._or_faster(presets)):
            return
        default = default_config(self.space, sampling_size)
        name = "default" if sampling_size == self.space.sampling_sizes[0] else f"default, {sampling_size} samples"
        if (yield from self._or_faster(Stage(name, [Candidate(default, "default")]))):
            return
        if weight_only:
            yield from self._layer_wise(default)
        yield from self._corrections(default)
        yield from self._all_recipes(default)
        yield from self._op_type_wise(default)
        yield from self._dynamic(default)
        yield from self._recipes_one_by_one(default)
        base = self._base(default)
        for precision in self.space.precisions:
            yield from self.fallback(base, precision)

    def _base(self, default: TuningConfig) -> TuningConfig:
        """The config that scored best so far, ``default`` where none scored a number."""
        return default if self._lead is None else self._lead.config

    def _ask(self, stage: Stage) -> Generator[Any, Any, StageResult]:
        """Have a stage judged and take from it a better base for the later ones, if there is one."""
        result: StageResult = yield self._as_far_as_needed(stage)
        if self._lead is None:
            self._lead = result.best
        rivals = sorted(filter(self._leads, result.trials), key=self._loss)[:_RIVALS]
        over = result.finished or (result.met is not None and self.context.stop_at_first)
        if rivals and self._lead is not None and not over:
            self._lead = yield from self._fast_enough(self._lead, rivals)
        return result

    def _as_far_as_needed(self, stage: Stage) -> Stage:
        """``stage``; where only a better base is looked for, what comes nowhere near one need not be scored in full."""
        lead = self._lead
        if stage.use != "base" or lead is None or lead.accuracy is None or not math.isfinite(lead.accuracy):
            return stage
        step = NOTICEABLE * abs(self.record.target - lead.accuracy) * _NEARLY
        floor = lead.accuracy + (step if self.context.criterion.higher_is_better else -step)
        return replace(stage, accuracy="verdict", floor=floor)

    def _or_faster(self, stage: Stage) -> Generator[Any, Any, bool]:
        """Have a stage judged and, where it meets, what may be faster than that; whether the strategy is done."""
        forms = has_faster_forms(self.space, self.context)
        result: StageResult = yield from self._ask(replace(stage, ends_run=not forms))
        if result.met is None or result.finished or not forms:
            return False
        yield faster_stage(self.space, result.met.config)
        return self.context.stop_at_first

    def _corrections(self, base: TuningConfig) -> TuneGenerator:
        stage = correction_stage(self.space, self.context, base)
        if stage.candidates:
            yield from self._ask(stage)

    def _leads(self, trial: Trial) -> bool:
        """Whether ``trial`` is so much more accurate than the base that this is no chance.

        A few samples more or less are chance, and the default config is the backend's fastest: a base that wins by
        chance would only be slower. So it must close a part of what is missing to the target.
        """
        lead = self._lead
        if lead is None or lead.accuracy is None or trial.accuracy is None:
            return False
        missing, gained = abs(self.record.target - lead.accuracy), abs(trial.accuracy - lead.accuracy)
        return (
            better(trial.accuracy, lead.accuracy, self.context.criterion.higher_is_better)
            and gained >= NOTICEABLE * missing
        )

    def _fast_enough(self, lead: Trial, rivals: Sequence[Trial]) -> Generator[Any, Any, Trial]:
        """The most accurate of ``rivals`` that is about as fast as ``lead``, which stays where none is.

        Fallback makes a config slower, never faster: from a slow base no fast model can come. Where latency is not
        the objective, or could not be measured, accuracy alone decides.
        """
        candidates = [Candidate(trial.config, trial.label) for trial in (lead, *rivals)]
        measured: StageResult = yield Stage("latency of possible bases", candidates, "none", "best", latency="all")
        latency = {trial.id: trial.latency for trial in measured.trials}
        ours = latency.get(lead.id)
        for rival in rivals:
            theirs = latency.get(rival.id)
            if ours is None or theirs is None or theirs.ci_low <= SLOWER * ours.ci_high:
                return rival
        return lead

    def _loss(self, trial: Trial) -> tuple[tuple[bool, float], int]:
        return best_first(trial.accuracy, self.context.criterion.higher_is_better), trial.id

    def _all_recipes(self, base: TuningConfig) -> TuneGenerator:
        if self.space.recipes:
            applied = base.with_recipes({recipe.name: recipe.choices[-1] for recipe in self.space.recipes})
            yield from self._ask(Stage("all recipes", [Candidate(self.space.effective(applied), "all recipes")]))

    def _layer_wise(self, default: TuningConfig) -> TuneGenerator:
        """Weight-only: bits and algorithm of single layers, from the best preset."""
        limit = min(_LAYER_WISE_TRIALS, self.record.remaining // 4)
        for stage in (yield from layer_wise(self.space, self._base(default), limit)):
            if stage is not None:
                yield from self._ask(stage)

    def op_type_wise_trials(self) -> int:
        """Trials that the op-type-wise stage may take."""
        affordable = min(16, self.record.remaining // 4)
        return whole_number(self.context.kwargs, "op_type_wise_trials", affordable, minimum=0)

    def _op_type_wise(self, base: TuningConfig) -> TuneGenerator:
        limit = self.op_type_wise_trials()
        found = op_type_wise_total(self.space, base, limit)
        if found and limit:
            yield from self._ask(Stage("op-type-wise", list(islice(op_type_wise(self.space, base), limit))))
        if found > limit:  # said afterwards: a run that was over before has left nothing out
            tried = f"the {limit} most promising combinations were tried" if limit else "no combination was tried"
            self.context.tell(
                f"op-type-wise: {tried}, the others are left out to keep trials for the fallback "
                f"(strategy_kwargs: op_type_wise_trials)"
            )

    def _dynamic(self, base: TuningConfig) -> TuneGenerator:
        """With approach ``auto`` every op that can be static or dynamic is static first, and dynamic here."""
        if base.needs_calibration:
            first = next(op_type_wise(self.space, base, "dynamic"), None)
            if first is not None:
                yield from self._ask(Stage("dynamic", [Candidate(first.config, "dynamic")]))

    def _recipes_one_by_one(self, default: TuningConfig) -> TuneGenerator:
        base = self._base(default)
        candidates = [
            Candidate(self.space.effective(base.with_recipes({recipe.name: choice})), f"{recipe.name}={choice}")
            for recipe in self.space.recipes
            for choice in recipe.choices[1:]
        ]
        if candidates:
            yield from self._ask(Stage("recipes one by one", candidates))

    def fallback(self, base: TuningConfig, precision: Mode) -> TuneGenerator:
        """Stages 5.1 to 5.3 for one floating-point precision, from ``base``."""
        blocks = block_stage(self.space, base, precision, self._after_blocks())
        if blocks.candidates:
            result = yield from self._ask(blocks)
            total = len(list(blocks.candidates))
            if len(result.trials) < total and not result.finished:
                self.context.tell(
                    f"{total} blocks, trials for {len(result.trials)}: the others are left out to keep trials for the "
                    f"fallback of single groups"
                )
            if len(result.trials) > 1:
                higher = self.context.criterion.higher_is_better
                reserve = self._after_blocks()
                yield accumulated_block_stage(self.space, base, blocks, result, precision, higher, reserve)
            if result.best is not None and result.best is self._lead:
                base = result.best.config
        groups = self.space.quantized_groups(base, precision)
        order = yield from self.order(base, groups, precision)
        if order:
            start = 1 if self._is_open(base, order[0], precision) else 2
            search = Search.of(self.context)
            yield from accumulate(self.space, base, order, precision, lambda: self.record.remaining, start, search)

    def _after_blocks(self) -> int:
        """Trials that a stage of blocks leaves: two thirds, since single groups are ranked and accumulated after it."""
        return 2 * self.record.remaining // 3

    def _is_open(self, base: TuningConfig, group: str, precision: Mode) -> bool:
        """Whether ``group`` alone was ranked but not judged."""
        config_hash = self.space.fallback(base, [group], precision).hash
        return any(t.config.hash == config_hash and t.verdict == "not_judged" for t in self.record.trials)

    def order(
        self, base: TuningConfig, groups: tuple[str, ...], precision: Mode
    ) -> Generator[Any, Any, tuple[str, ...]]:
        """Groups by impact, found by trying each alone (stage 5.2).

        Where the budget cannot pay for every group and for accumulating them afterwards, those that bring
        the largest output error are tried and the others follow in the order of that error.
        """
        reserve = min(len(groups), self.record.remaining // 3)
        affordable = self.record.remaining - reserve
        tried = tuple(reversed(groups))
        if len(groups) > affordable:
            probe: ProbeResult = yield sensitivity_probe(self.space, base, groups, precision, batches=2)
            groups = score_order(probe.scores, groups)
            tried = groups[:affordable]
            self.context.tell(
                f"{len(groups)} groups of ops, trials for {affordable}: those with the largest output error are tried "
                f"one by one, the others follow in that order"
            )
        result: StageResult = yield instance_stage(self.space, base, tried, precision, reserve)
        return impact_order(result, groups, self.context.criterion.higher_is_better)
