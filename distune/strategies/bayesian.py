"""Bayesian optimization with a Gaussian process and (constrained) log expected improvement, by Optuna's GPSampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from distune.strategies.ask_tell import AskTellTuneStrategy
from distune.strategies.registry import strategy_registry


@strategy_registry
class BayesianTuneStrategy(AskTellTuneStrategy):
    """Models the objective by a Gaussian process and judges where the expected improvement is largest.

    It thinks for seconds before each config on models of many ops; needs torch.
    """

    patience: ClassVar = 1  # asking again would take seconds and mostly give the same answer
    needs: ClassVar = {"optuna": "samplers", "torch": "torch"}

    def sampler(self, optuna: Any, constraints: Mapping[str, Any]) -> Any:
        return optuna.samplers.GPSampler(seed=self.context.seed, warn_independent_sampling=False, **constraints)
