"""Forecasts: the real engine on simulated workers, with the durations that it is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distune.config.job import StrategySpec
from distune.engine.forecast import Durations, forecast
from distune.trial.messages import Inspection
from tests import synthetic
from tests.engine.simulated_run import job

INSPECTION = Inspection(synthetic.capability(convs=12, matmuls=0), 1000, {}, {}, digest="model")
DURATIONS = Durations(10, 100, 0.5, 1, 50, 5, 2)


def test_an_easy_run_takes_what_its_parts_take() -> None:
    """Startup, baseline, calibration of 100 samples, one trial, one latency, one export."""
    easy = forecast(job(), INSPECTION, DURATIONS, "easy", 1)
    assert easy.trials == 1
    assert easy.seconds == pytest.approx(10 + 100 + 50 + (1 + 50) + 5 + 1, abs=1)


def test_ranks_share_the_ranking_stage() -> None:
    one, four = (forecast(job(), INSPECTION, DURATIONS, "hard", ranks) for ranks in (1, 4))
    assert one.trials == four.trials
    assert four.seconds < one.seconds / 2
    assert [stage.name for stage in one.stages] == [stage.name for stage in four.stages]


def test_nothing_meets_and_the_stages_are_told() -> None:
    never = forecast(job(), INSPECTION, DURATIONS, "never", 2)
    names = [stage.name for stage in never.stages]
    assert names[0] == "default"
    assert "instance-wise fallback to fp32" in names
    assert not any(stage.met for stage in never.stages)


@pytest.mark.parametrize("name", ["mse", "random", "conservative", "exhaustive"])
def test_every_strategy_can_be_forecast(name: str) -> None:
    tuning = replace(job(), strategy=StrategySpec(name))
    assert forecast(tuning, INSPECTION, DURATIONS, "hard", 2).trials > 0


def test_lower_may_be_better() -> None:
    criterion = replace(job().criterion, higher_is_better=False)
    assert forecast(job(criterion=criterion), INSPECTION, DURATIONS, "easy", 1).trials == 1
