"""What a second start makes of the first: time that ran out, failures, and other budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distune.config.job import Constraint, CriterionSpec, StrategySpec
from distune.journal.replay import decisions, same_decisions
from distune.space.op_config import TuningConfig
from distune.trial.messages import (
    Baseline,
    Calibrate,
    Export,
    Failure,
    Inspection,
    Judge,
    Probe,
    ResultBody,
    Survey,
)
from tests.engine.simulated_run import Model, Run, job, policy, tune

LOOSE = CriterionSpec("absolute", 0.5)


class WithAnOpForDynamicAlone(Model):
    """Its first op has no form for the approach of these runs."""

    def _body(self, body: Any) -> ResultBody:
        answer = super()._body(body)
        if not isinstance(answer, Inspection):
            return answer
        first, *others = answer.capability.ops
        options = tuple(replace(option, mode="dynamic") if option.is_quantized else option for option in first.options)
        return replace(answer, capability=replace(answer.capability, ops=(replace(first, options=options), *others)))


@dataclass
class Broken(Model):
    """One kind of work always ends so."""

    work: type = Baseline
    kind: Any = "crash"

    def _body(self, body: Any) -> ResultBody:
        return Failure(self.kind, "planted") if isinstance(body, self.work) else super()._body(body)


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


@pytest.mark.parametrize("strategy", ["basic", "exhaustive"])
@pytest.mark.parametrize("timeout", [4.5, 7.0, 10.5, 14.0, 19.0])
def test_what_was_timed_before_the_time_was_over_decides_again(tmp_path: Path, strategy: str, timeout: float) -> None:
    tuning = job(exit_policy=policy(timeout, 60), strategy=StrategySpec(strategy), criterion=LOOSE)
    first, again = (tune(tmp_path, Model(COST), tuning) for _ in range(2))
    assert first.outcome.best is not None
    assert again.outcome.best is not None
    assert again.outcome.best.id == first.outcome.best.id
    ratios = [[(t.id, t.latency.ratio if t.latency else None) for t in run.outcome.trials] for run in (first, again)]
    assert ratios[0] == ratios[1]
    assert any(ratio is not None for _, ratio in ratios[0])


def test_trials_that_the_time_was_too_short_to_compare_are_counted(tmp_path: Path) -> None:
    tuning = job(exit_policy=policy(7.0, 60), strategy=StrategySpec("exhaustive"), criterion=LOOSE)
    outcome = tune(tmp_path, Model(COST), tuning).outcome
    untimed = [trial for trial in outcome.trials if trial.met and trial.latency is None]
    assert untimed
    assert any(
        f"{len(untimed)} of " in warning and "not timed before the timeout" in warning for warning in outcome.warnings
    )


def test_the_journal_names_the_ops_that_its_configs_hold(tmp_path: Path) -> None:
    run = tune(tmp_path, WithAnOpForDynamicAlone(COST), job())
    (named,) = [record.data["ops"] for record in run.records if record.data.get("kind") == "ops"]
    assert [entry[0] for entry in named] == [name for name, _ in run.outcome.trials[0].config.ops]


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


@pytest.mark.parametrize("kind", ["crash", "deadline", "memory"])
@pytest.mark.parametrize("work", [Baseline, Survey, Calibrate, Probe, Export])
def test_what_says_nothing_of_a_config_is_tried_again_whatever_it_cost(tmp_path: Path, kind: Any, work: type) -> None:
    tuning = job(strategy=StrategySpec("mse")) if work is Probe else job()
    workers = 2 if work is Survey else 1
    broken = Broken(COST, work=work, kind=kind)
    first = tune(tmp_path, broken, tuning, workers=workers)
    if work is not Probe:  # a run stands without one
        assert first.outcome.outcome == "failed"
        assert "planted" in first.outcome.failure
    again = tune(tmp_path, Model(COST), tuning, workers=workers)
    assert any(isinstance(request.body, work) for _, request in again.model.asked)
    assert again.outcome.outcome == "met"


def test_values_are_counted_once_a_config_asks_for_more_than_minima_and_maxima(tmp_path: Path) -> None:
    def of(config: TuningConfig) -> float:
        return 1.0 if config.needs_histograms else 0.5

    def calibrated(run: Run) -> list[bool]:
        return [body.histograms for _, request in run.model.asked if isinstance(body := request.body, Calibrate)]

    assert calibrated(tune(tmp_path / "easy", Model({}))) == [False]
    hard = tune(tmp_path / "hard", Model(of=of))
    assert hard.outcome.best is not None
    assert hard.outcome.best.config.needs_histograms
    assert calibrated(hard) == [False, True]
    (tmp_path / "hard" / "journal.jsonl").unlink()
    again = tune(tmp_path / "hard", Model(of=of))
    assert (calibrated(again), again.winner) == ([], hard.winner)


def test_a_base_has_its_statistics_though_the_journal_answers_all_that_needed_them(tmp_path: Path) -> None:
    rules = (
        Constraint("model", activation={"algorithm": ["minmax"]}),
        Constraint("op", "conv0", activation={"algorithm": ["percentile"]}),
    )
    tuning = job(constraints=rules)
    first = tune(tmp_path, Model(COST), tuning)
    journal = tmp_path / "journal.jsonl"
    kept = journal.read_text().splitlines(keepends=True)
    (back,) = [t.config for t in first.outcome.trials if t.label == "conv0" and "instance" in t.stage]
    assert not back.needs_histograms
    cut = next(number for number, line in enumerate(kept) if f"judge:{back.hash}" in line)
    journal.write_text("".join(kept[:cut]))
    for path in tmp_path.rglob("statistics-*.bin"):
        path.unlink()
    again = tune(tmp_path, Model(COST), tuning)
    asked = [request.body for _, request in again.model.asked]
    judged = next(number for number, body in enumerate(asked) if isinstance(body, Judge))
    assert asked[judged].config == back
    assert [body.histograms for body in asked[:judged] if isinstance(body, Calibrate)] == [True]
    assert same_decisions(first.records, again.records) == []


@pytest.mark.parametrize("left", [0, 40, -1])
def test_damaged_statistics_are_collected_again(tmp_path: Path, left: int) -> None:
    first = tune(tmp_path, Model(COST), job())
    kept = {path: path.read_bytes() for path in tmp_path.rglob("statistics-*.bin")}
    for path, content in kept.items():
        path.write_bytes(content[:left])
    again = tune(tmp_path, Model(COST), job())
    collected = [body for _, request in again.model.asked if isinstance(body := request.body, Calibrate)]
    whole = [path for path, content in kept.items() if path.read_bytes() == content]
    assert len(whole) == len(collected) > 0  # of those that the rest of the run needs
    assert again.outcome.outcome == first.outcome.outcome


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("strategy", ["basic", "mse", "mse_v2", "exhaustive", "random", "tpe", "knapsack"])
def test_wherever_a_journal_ends_the_workers_get_the_statistics_for_the_rest(
    tmp_path: Path, strategy: str, workers: int
) -> None:
    rules = (
        Constraint("model", activation={"algorithm": ["minmax"]}),
        Constraint("op", "conv0", activation={"algorithm": ["percentile"]}),
    )
    tuning = job(strategy=StrategySpec(strategy), constraints=rules, exit_policy=policy(max_trials=6))
    first = tune(tmp_path, Model(COST), tuning)
    journal = tmp_path / "journal.jsonl"
    kept = journal.read_text().splitlines(keepends=True)
    for end in range(len(kept) - 1, 0, -1):
        journal.write_text("".join(kept[:end]))
        for path in tmp_path.rglob("statistics-*.bin"):
            path.unlink()
        again = tune(tmp_path, Model(COST), tuning, workers=workers)
        assert same_decisions(first.records, again.records) == []
