"""What a second start makes of the first: time that ran out, failures, and other budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.config.job import StrategySpec
from distune.journal.replay import decisions, same_decisions
from tests.engine.simulated_run import Model, job, policy, tune

COST = {"conv0": 0.02, "conv1": 0.3, "conv2": 0.01, "conv3": 0.08, "matmul0": 0.05}


@pytest.mark.parametrize("strategy", ["basic", "random", "mse"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_whose_time_was_over_gives_its_result_again(tmp_path: Path, strategy: str, workers: int) -> None:
    tuning = job(exit_policy=policy(9.0, 60), strategy=StrategySpec(strategy))
    first = tune(tmp_path, Model(COST), tuning, workers=2)
    assert 0 < len(first.outcome.trials) < 60
    again = tune(tmp_path, Model(COST), tuning, workers=workers)
    assert again.model.judged == []
    assert again.outcome.outcome == first.outcome.outcome
    assert [trial.id for trial in again.outcome.trials] == [trial.id for trial in first.outcome.trials]
    assert same_decisions(first.records, again.records) == []


def test_more_time_goes_on_where_it_ended(tmp_path: Path) -> None:
    first = tune(tmp_path, Model(COST), job(exit_policy=policy(9.0, 60)))
    more = tune(tmp_path, Model(COST), job(exit_policy=policy(1e6, 60)))
    assert len(more.outcome.trials) > len(first.outcome.trials)
    done = [trial.config.hash for trial in first.outcome.trials]
    assert not set(done) & set(more.model.judged)


def test_after_a_smaller_budget_the_journal_holds_its_decisions_alone(tmp_path: Path) -> None:
    tune(tmp_path, Model(COST), job(exit_policy=policy(max_trials=20)))
    less = tune(tmp_path, Model(COST), job(exit_policy=policy(max_trials=3)))
    kinds = [decision["kind"] for decision in decisions(less.records)]
    assert kinds.count("winner") == 1
    assert kinds[-1] == "winner"
    assert kinds.count("trial") >= len(less.outcome.trials) == 3


def test_a_failure_is_tried_again_by_the_next_start(tmp_path: Path) -> None:
    broken = Model(COST, failing=lambda config: True)
    assert tune(tmp_path, broken, job(exit_policy=policy(max_trials=4))).outcome.best is None
    mended = tune(tmp_path, Model({}), job(exit_policy=policy(max_trials=4)))
    assert mended.outcome.outcome == "met"
