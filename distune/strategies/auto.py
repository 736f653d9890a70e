"""Auto (``quant_level: auto``): the default configuration, then conservative, then basic."""

from __future__ import annotations

from typing import ClassVar

from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.basic import BasicTuneStrategy
from distune.strategies.conservative import ConservativeTuneStrategy
from distune.strategies.default import default_config
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
        if (
            is_weight_only(self.space)
            and (presets := preset_stage(self.space, self.space.sampling_sizes[0])).candidates
        ):
            swept: StageResult = yield presets
            if swept.finished:
                return
        default = default_config(self.space, self.space.sampling_sizes[0])
        result: StageResult = yield Stage("default", [Candidate(default, "default")])
        if result.finished:
            return
        yield from ConservativeTuneStrategy(self.space, self.context).op_type_by_op_type()
        yield from BasicTuneStrategy(self.space, self.context).next_tune_cfg()
