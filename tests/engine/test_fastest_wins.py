"""With time to look further, the fastest model that meets wins: not the first, and not the most accurate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distune.config.job import CriterionSpec, ExitPolicy, StrategySpec, TuningJob
from distune.space.op_config import TuningConfig
from tests.engine.simulated_run import Model, job, tune

ACCURACIES = (1.0, 2.1, 2.2, 2.3, 2.1, 2.4)
RATIOS = (0.2, 0.5, 0.4, 0.1, 0.3, 0.6)
"""The fastest of those that meet is the fourth, as in INC's own scenario; the first is fast and does not meet."""


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("level", ["auto", 1])
def test_the_fastest_that_meets_wins_whatever_the_order(tmp_path: Path, workers: int, level: object) -> None:
    order = _decided_order(tmp_path / "order", level)

    model = Model(baseline=2.0, of=partial(_nth, order, ACCURACIES), ratio=partial(_nth, order, RATIOS))
    outcome = tune(tmp_path / "run", model, _job(level), workers=workers).outcome
    assert outcome.outcome == "met"
    assert len(outcome.trials) == len(ACCURACIES)
    assert outcome.best is not None
    assert outcome.best.id == 4
    assert outcome.best.accuracy == 2.3


def _job(level: Any) -> TuningJob:
    return job(
        quant_level=level,
        strategy=StrategySpec("basic"),
        criterion=CriterionSpec("relative", 0.01),
        exit_policy=ExitPolicy(timeout=10_000, max_trials=len(ACCURACIES)),
    )


def _decided_order(folder: Path, level: object) -> list[str]:
    """The configs that a run with the same verdicts decides on, in order."""
    known: list[str] = []
    for _ in ACCURACIES:
        model = Model(
            baseline=2.0, of=partial(_nth, tuple(known), ACCURACIES), ratio=partial(_nth, tuple(known), RATIOS)
        )
        outcome = tune(folder / str(len(known)), model, _job(level)).outcome
        known.append(outcome.trials[len(known)].config.hash)
    return known


def _nth(known: Sequence[str], values: Sequence[float], config: TuningConfig) -> float:
    """The value of the config's place in ``known``, and of the place after it for all others."""
    return values[known.index(config.hash) if config.hash in known else min(len(known), len(values) - 1)]
