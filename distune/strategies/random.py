"""Random: tuning configs drawn uniformly, none twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from distune.strategies.ask_tell import AskTellTuneStrategy
from distune.strategies.registry import strategy_registry


@strategy_registry
class RandomTuneStrategy(AskTellTuneStrategy):
    """Judges tuning configs chosen at random."""

    batch_size: ClassVar = 8
    learns: ClassVar = False
    from_default: ClassVar = False

    def sampler(self, optuna: Any, constraints: Mapping[str, Any]) -> Any:
        return optuna.samplers.RandomSampler(seed=self.context.seed)
