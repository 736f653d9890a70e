"""Auto (``quant_level: auto``): the default configuration and corrections of it, then conservative, then basic."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, ClassVar

from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.basic import BasicTuneStrategy
from distune.strategies.conservative import ConservativeTuneStrategy
from distune.strategies.corrections import correction_stage
from distune.strategies.default import default_config
from distune.strategies.faster import faster_stage, has_faster_forms
from distune.strategies.registry import strategy_registry
from distune.strategies.stage import Candidate, Stage, StageResult
from distune.strategies.weight_only import is_weight_only, preset_stage


@strategy_registry
class AutoTuneStrategy(TuneStrategy):
    """The default configuration; if it does not meet the criterion, conservative and then basic.

    What one of them had judged the other knows. A model that conservative found does not end the run, since it may
    have too little of it quantized to be of use: basic goes on within the budget, and of all that meet the best
    objective wins.
    """

    settings: ClassVar = BasicTuneStrategy.settings

    def next_tune_cfg(self) -> TuneGenerator:
        if is_weight_only(self.space):
            presets = preset_stage(self.space, self.space.sampling_sizes[0])
            if presets.candidates and (yield from self._or_faster(presets)):
                return
        default = default_config(self.space, self.space.sampling_sizes[0])
        if (yield from self._or_faster(Stage("default", [Candidate(default, "default")]))):
            return
        corrections = correction_stage(self.space, self.context, default)
        if corrections.candidates:
            corrected: StageResult = yield corrections
            if corrected.finished:
                return
        yield from ConservativeTuneStrategy(self.space, self.context).op_type_by_op_type()
        yield from BasicTuneStrategy(self.space, self.context).next_tune_cfg()

    def _or_faster(self, stage: Stage) -> Generator[Any, Any, bool]:
        """Have a stage judged and, where it meets, what may be faster than that; whether the strategy is done."""
        forms = has_faster_forms(self.space, self.context)
        result: StageResult = yield replace(stage, ends_run=not forms)
        if result.met is not None and not result.finished and forms:
            result = yield faster_stage(self.space, result.met.config)
            return self.context.stop_at_first
        return result.finished
