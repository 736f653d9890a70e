"""The door for strategies of one's own: what they derive from, register with, ask for and get back.

A class whose name ends in ``TuneStrategy`` and that yields tuning configs from ``next_tune_cfg`` is a strategy; one
that yields stages of many is a parallel one::

    from distune.strategy import Stage, TuneStrategy, strategy_registry

    @strategy_registry
    class OneByOneTuneStrategy(TuneStrategy):
        def next_tune_cfg(self):
            base = self.space.default()
            yield base
            yield Stage("one op each", [base.with_ops({op.name: FP32}) for op in self.space.ops])
"""

from __future__ import annotations

from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import StrategyContext, TuneStrategy, TuningFinished
from distune.strategies.registry import strategies, strategy_registry
from distune.strategies.stage import Candidate, ProbeResult, ProbeStage, Stage, StageResult, Trial

__all__ = [
    "FP32",
    "Candidate",
    "OpConfig",
    "ProbeResult",
    "ProbeStage",
    "Stage",
    "StageResult",
    "StrategyContext",
    "Trial",
    "TuneStrategy",
    "TuningConfig",
    "TuningFinished",
    "TuningSpace",
    "strategies",
    "strategy_registry",
]
