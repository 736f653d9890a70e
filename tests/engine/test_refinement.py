"""The minimality pass: no op of an accepted model stays in floating point for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distune.config.job import EvaluationSpec, ModelSpec, StrategySpec, TuningJob
from distune.space.op_config import TuningConfig
from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.registry import strategy_registry
from distune.strategies.stage import Candidate, Stage
from tests.engine.simulated_run import Model, Run, job, policy, tune
from tests.engine.test_early_verdict import EarlyModel

COST = {"conv1": 0.3, "conv4": 0.3}
"""Of seven groups, two must stay in floating point."""


@strategy_registry
class WastefulTuneStrategy(TuneStrategy):
    """Keeps the first six groups in floating point, whatever they cost."""

    def next_tune_cfg(self) -> TuneGenerator:
        default, groups = self.space.default(), tuple(self.space.groups)
        yield Stage("default", [Candidate(default, "default")])
        yield Stage("wasteful", [Candidate(self.space.fallback(default, groups[:6]), "wasteful")], order=groups[:6])


@strategy_registry
class TunedTuneStrategy(WastefulTuneStrategy):
    """As that, after a trial that quantizes conv1 and conv4 in another way."""

    def next_tune_cfg(self) -> TuneGenerator:
        other = self.space.default()
        for group in ("conv1", "conv4"):
            other = self.space.set_group(other, group, self.space.group_options(group)[1])
        yield Stage("tuned", [Candidate(self.space.fallback(other, ["conv0"]), "tuned")])
        yield from super().next_tune_cfg()


def refined(path: Path, trials: int | None = 8, workers: int = 1, **model: Any) -> Run:
    wasteful = job(strategy=StrategySpec("wasteful"), refine_trials=trials)
    return tune(path, Model(**{"cost": COST, "convs": 7, "matmuls": 0, **model}), wasteful, workers=workers)


def floating(config: TuningConfig) -> set[str]:
    return {name for name, option in config.ops if not option.is_quantized and name.startswith("conv")}


def decisions(run: Run) -> list[dict[str, Any]]:
    return [dict(record.data) for record in run.records if record.kind == "decision"]


def test_what_is_not_needed_in_floating_point_is_given_back_also_with_timeout_0(tmp_path: Path) -> None:
    run = refined(tmp_path)
    assert run.outcome.best is not None
    assert floating(run.outcome.best.config) == {"conv1", "conv4"}
    assert run.outcome.given_back == ("conv0", "conv2", "conv3", "conv5")
    assert "refine" in run.stages
    (decided,) = [data for data in decisions(run) if data["kind"] == "refine"]
    assert (decided["accepted"], decided["given_back"]) == (2, ["conv0", "conv2", "conv3", "conv5"])
    before = run.outcome.trials[1].latency
    after = run.outcome.best.latency
    assert before is not None
    assert after is not None
    assert after.ratio < before.ratio


@pytest.mark.parametrize("early", [False, True])
def test_what_does_harm_in_one_way_is_given_back_as_another_trial_has_quantized_it(tmp_path: Path, early: bool) -> None:
    """No trial with the other way meets, so that its accuracy may be unknown: nothing rests on it."""
    other: dict[str, Any] = {}

    def accuracy(config: TuningConfig) -> float:
        other.update({} if other else config.by_name)  # of the first trial
        harmful = [name for name in COST if (option := config.by_name[name]).is_quantized and option != other[name]]
        return 1.0 - 0.3 * len(harmful) - 0.5 * (len(config.quantized_ops) == 6)

    settings = job(strategy=StrategySpec("tuned"), refine_trials=20)
    kind = EarlyModel if early else Model
    run = tune(tmp_path, kind(convs=7, matmuls=0, of=accuracy), settings)
    assert run.outcome.best is not None
    assert floating(run.outcome.best.config) == set()
    assert {run.outcome.best.config.by_name[name] for name in COST} == {other[name] for name in COST}


@pytest.mark.parametrize("trials", [1, 3, 8])
def test_it_keeps_to_a_budget_of_its_own(tmp_path: Path, trials: int) -> None:
    wasteful = job(strategy=StrategySpec("wasteful"), refine_trials=trials, exit_policy=policy(max_trials=2))
    run = tune(tmp_path, Model(COST, convs=7, matmuls=0), wasteful)
    assert run.outcome.outcome == "met"
    assert 2 < len(run.outcome.trials) <= 2 + trials


def test_0_turns_it_off_and_an_eval_func_of_the_user_is_not_called_for_it_unasked(tmp_path: Path) -> None:
    for trials in (0, None):
        run = refined(tmp_path / str(trials), trials)
        assert len(run.outcome.trials) == 2
        assert run.outcome.given_back == ()
    plain = TuningJob(ModelSpec("onnxruntime", "m.onnx"), evaluation=EvaluationSpec())
    assert plain.refine_budget == 8


def test_a_slower_model_is_not_taken_though_it_has_more_in_integers(tmp_path: Path) -> None:
    run = refined(tmp_path, ratio=lambda config: 0.5 + 0.05 * len(config.quantized_ops))
    assert run.outcome.best is not None
    assert run.outcome.best.label == "wasteful"
    assert run.outcome.given_back == ()


def test_the_same_is_decided_at_any_number_of_ranks_and_after_a_resume(tmp_path: Path) -> None:
    one = refined(tmp_path / "one")
    three = refined(tmp_path / "three", workers=3)
    assert decisions(one) == decisions(three)
    wasteful = job(strategy=StrategySpec("wasteful"), refine_trials=8)
    model = Model(COST, convs=7, matmuls=0)
    cut = tune(tmp_path / "cut", model, wasteful, interrupt_at=5)
    assert cut.outcome.outcome == "interrupted"
    again = tune(tmp_path / "cut", model, wasteful)
    assert decisions(again) == decisions(one)
    assert len(set(model.judged)) == len(one.outcome.trials)


@pytest.mark.parametrize("timeout", [13.0, 14.0, 15.0, 16.0, 17.0])
def test_a_timeout_that_comes_while_parts_are_joined_ends_the_run_with_its_winner(
    tmp_path: Path, timeout: float
) -> None:
    wasteful = job(strategy=StrategySpec("wasteful"), refine_trials=8, exit_policy=policy(timeout=timeout))
    for _ in ("a start", "a resume"):
        run = tune(tmp_path, Model(COST, convs=7, matmuls=0), wasteful)
        assert run.outcome.outcome == "met"
        assert run.outcome.best is not None
        assert run.outcome.best.met


def test_nothing_is_refined_where_nothing_met_or_all_is_quantized(tmp_path: Path) -> None:
    never = refined(tmp_path / "never", of=lambda config: 0.0)
    easy = refined(tmp_path / "easy", cost={})
    assert "refine" not in {*never.stages, *easy.stages}
