"""TPE: tree-structured Parzen estimator.

Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011; as implemented by Optuna, with
the constraint handling of c-TPE (Watanabe and Hutter, arXiv:2211.14411).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distune.strategies.ask_tell import AskTellTuneStrategy
from distune.strategies.registry import strategy_registry


@strategy_registry
class TPETuneStrategy(AskTellTuneStrategy):
    """Samples where good configs are dense and bad ones are not; worth its while from some tens of trials on."""

    def sampler(self, optuna: Any, constraints: Mapping[str, Any]) -> Any:
        # Constant liar: what of a batch is not judged yet counts as bad, so that a batch spreads out.
        return optuna.samplers.TPESampler(
            seed=self.context.seed,
            multivariate=True,
            constant_liar=True,
            **constraints,
        )
