"""Whole runs: the same answer for any number of workers, every ending, and resuming."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distune.backends.statistics import CalibrationStatistics
from distune.config.job import CalibrationSpec, CriterionSpec, EvaluationSpec, ObjectiveSpec, StrategySpec
from distune.distributed.simulated import Faults
from distune.errors import UserCodeError, WorkspaceError
from distune.journal.replay import same_decisions
from distune.space.op_config import TuningConfig
from distune.trial.messages import Accuracy, Baseline, Calibrate, Probe, Request, ResultBody, Statistics, Survey
from tests.engine.simulated_run import Model, Run, job, policy, tune

pytestmark = pytest.mark.timeout(60)

HARD = {"conv0": 0.02, "conv1": 0.3, "conv2": 0.01, "conv3": 0.08, "matmul0": 0.05}
"""conv1 alone is not enough: 0.16 remains, 0.1 is allowed. conv1 and conv3 leave 0.08."""

NOTHING = dict.fromkeys(HARD, 0.5)
"""Every op alone costs more than is allowed."""


def same(a: Run, b: Run) -> list[str]:
    """How two runs differ in what must be the same."""
    found = same_decisions(a.records, b.records)
    for name in ("outcome", "fallback_order", "op_impact"):
        left, right = getattr(a.outcome, name), getattr(b.outcome, name)
        found += [f"{name}: {left} and {right}"] if left != right else []
    winners = [run.outcome.best.config.hash if run.outcome.best else None for run in (a, b)]
    ids = [[(trial.id, trial.config.hash) for trial in run.outcome.trials] for run in (a, b)]
    return found + (["winner"] if winners[0] != winners[1] else []) + (["trials"] if ids[0] != ids[1] else [])


# ------------------------------------------------------------------------------------ the same for any number of ranks


@pytest.mark.parametrize("workers", [2, 3, 8, 40])
def test_more_workers_decide_the_same(tmp_path: Path, workers: int) -> None:
    alone = tune(tmp_path / "1", Model(HARD))
    assert alone.stages[-1] == "accumulated fallback to fp32"
    assert alone.outcome.fallback_order == ("conv1", "conv3", "matmul0", "conv0", "conv2")
    model = Model(HARD)
    together = tune(tmp_path / "n", model, workers=workers)
    assert same(alone, together) == []
    assert together.seconds < alone.seconds
    assert len({rank for rank, request in model.asked if isinstance(request.body, Survey)}) == workers


def test_one_rank_scores_fp32_where_ranks_read_other_data(tmp_path: Path) -> None:
    model = Model(HARD, data=lambda rank: f"shuffled by {rank}")
    together = tune(tmp_path / "n", model, workers=3)
    assert [body.surveys for _, request in model.asked if isinstance(body := request.body, Baseline)] == [()]
    assert len([text for text in together.outcome.warnings if "were not the same on all ranks" in text]) == 1
    assert same(tune(tmp_path / "1", Model(HARD)), together) == []


@settings(max_examples=30, deadline=None)
@given(
    workers=st.integers(1, 9),
    costs=st.tuples(*[st.floats(0.0, 0.3) for _ in HARD]),
    seconds=st.lists(st.floats(0.01, 30.0), min_size=1, max_size=9),
    delays=st.lists(st.floats(0.0, 60.0), min_size=1, max_size=7),
    max_trials=st.integers(1, 30),
    timeout=st.sampled_from([0.0, 1e9]),
)
def test_no_order_of_arrival_changes_a_decision(workers, costs, seconds, delays, max_trials, timeout) -> None:
    cost = dict(zip(HARD, costs, strict=True))
    tuning = job(exit_policy=policy(timeout, max_trials))
    unlike = Model(cost, seconds=lambda rank, request: seconds[(rank + request.id) % len(seconds)])
    faults = Faults(
        delay=lambda rank, request: delays[(rank * 5 + request.id) % len(delays)],
        duplicates=lambda rank, request: 3.0 if request.id % 4 == 0 else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        alone = tune(Path(folder, "1"), Model(cost), tuning)
        together = tune(Path(folder, "n"), unlike, tuning, workers=workers, faults=faults)
    assert same(alone, together) == []
    assert len(alone.outcome.trials) <= max_trials


@settings(max_examples=15, deadline=None)
@given(lost=st.dictionaries(st.integers(1, 3), st.floats(0.0, 40.0), min_size=1))
def test_a_worker_that_is_lost_changes_no_decision(lost: dict[int, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone = tune(Path(folder, "1"), Model(HARD))
        left = tune(Path(folder, "n"), Model(HARD), workers=4, faults=Faults(lost=lost))
    assert same(alone, left) == []
    died = {rank for rank, when in lost.items() if when <= left.seconds}
    assert set(left.outcome.lost_ranks) <= died
    for rank in left.outcome.lost_ranks:
        assert any(warning.startswith(f"rank {rank} on simulated: worker lost") for warning in left.outcome.warnings)


@settings(max_examples=25, deadline=None)
@given(ranks=st.sets(st.integers(1, 11), min_size=2), when=st.floats(0.0, 40.0) | st.integers(0, 40).map(float))
@example(ranks=set(range(1, 12)), when=10.5)  # some of them work, the others do not
def test_a_node_that_is_lost_with_several_workers_at_once_changes_no_decision(ranks: set[int], when: float) -> None:
    uneven = Model(HARD, seconds=lambda rank, request: 1.0 + (rank * 7 + request.id) % 5)
    with tempfile.TemporaryDirectory() as folder:
        alone = tune(Path(folder, "1"), Model(HARD))
        left = tune(Path(folder, "n"), uneven, workers=12, faults=Faults(lost=dict.fromkeys(ranks, when)))
    assert same(alone, left) == []
    assert set(left.outcome.lost_ranks) in (ranks, set())


# ------------------------------------------------------------------------------------------------------------- endings


def test_the_first_success_ends_the_run(tmp_path: Path) -> None:
    run = tune(tmp_path, Model({"conv0": 0.05}), workers=3)
    assert (run.outcome.outcome, run.stages, len(run.outcome.trials)) == ("met", ["default"], 1)
    assert run.outcome.best is not None
    assert run.outcome.best.latency is not None


def test_where_nothing_meets_the_best_effort_is_given(tmp_path: Path) -> None:
    run = tune(tmp_path, Model(NOTHING), workers=2)
    assert run.outcome.outcome == "not_met"
    assert run.outcome.exit_code == 3
    assert run.outcome.best is not None
    assert not run.outcome.best.met
    assert run.outcome.best.accuracy == max(trial.accuracy or 0 for trial in run.outcome.trials)
    assert run.outcome.exported is not None


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failed_trial_is_no_end(tmp_path: Path, workers: int) -> None:
    def only_conv2(config: TuningConfig) -> bool:
        return "conv2" not in config.quantized_ops and "conv1" in config.quantized_ops

    run = tune(tmp_path, Model(HARD, failing=only_conv2), workers=workers)
    failed = [trial for trial in run.outcome.trials if trial.verdict == "failed"]
    assert [trial.label for trial in failed] == ["conv2"]
    assert failed[0].reason == "planted failure"
    assert failed[0].accuracy is None
    assert run.outcome.fallback_order[-1] == "conv2"
    assert run.outcome.outcome == "met"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_in_which_every_trial_fails_ends(tmp_path: Path, workers: int) -> None:
    run = tune(tmp_path, Model(failing=lambda config: True), workers=workers)
    assert (run.outcome.outcome, run.outcome.best, run.outcome.exported) == ("not_met", None, None)
    assert {trial.verdict for trial in run.outcome.trials} == {"failed"}


@pytest.mark.parametrize("max_trials", [1, 2, 5, 9])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_budget_may_end_in_the_middle_of_a_stage(tmp_path: Path, max_trials: int, workers: int) -> None:
    run = tune(tmp_path, Model(NOTHING), job(exit_policy=policy(max_trials=max_trials)), workers=workers)
    assert run.outcome.outcome == "budget_spent"
    assert run.outcome.exit_code == 4
    assert len(run.outcome.trials) <= max_trials
    assert len(run.model.judged) <= max_trials, "what no decision can use is not judged"


def test_a_timeout_in_the_middle_of_a_stage_ends_it(tmp_path: Path) -> None:
    for workers in (1, 3):
        model = Model(NOTHING, seconds=lambda rank, request: 7.0)
        run = tune(tmp_path / str(workers), model, job(exit_policy=policy(timeout=60)), workers=workers)
        assert run.outcome.outcome == "budget_spent"
        assert 60 <= run.seconds < 60 + 4 * 7, "after the timeout: what runs, one latency, the export"
        assert run.outcome.best is not None


def test_with_time_left_the_fastest_that_meets_wins(tmp_path: Path) -> None:
    """The default meets at once; an option of the MatMul is faster."""

    def ratio(config: TuningConfig) -> float:
        weight = config.by_name["matmul0"].weight
        return 0.5 if weight is not None and weight.granularity == "per_tensor" else 0.8

    for workers in (1, 3):
        tuning = job(exit_policy=policy(timeout=1e9))
        run = tune(tmp_path / str(workers), Model({"conv0": 0.01}, ratio=ratio), tuning, workers=workers)
        assert run.outcome.outcome == "met"
        assert run.outcome.best is not None
        assert run.outcome.best.latency is not None
        assert run.outcome.best.latency.ratio == 0.5
        assert len(run.outcome.trials) > 1


def test_latencies_that_cannot_be_told_apart_are_a_tie_and_the_smaller_model_wins(tmp_path: Path) -> None:
    tuning = job(exit_policy=policy(timeout=1e9))
    run = tune(tmp_path, Model({"conv0": 0.01}, ratio=lambda config: 0.5), tuning)
    met = [trial for trial in run.outcome.trials if trial.met]
    assert run.outcome.tied == tuple(trial.id for trial in met)
    assert run.outcome.best is not None
    smallest = min(trial.size_bytes or 0 for trial in met)
    assert run.outcome.best.id == next(trial.id for trial in met if trial.size_bytes == smallest)


def test_a_latency_that_cannot_be_measured_is_no_end(tmp_path: Path) -> None:
    run = tune(tmp_path, Model({}, ratio=lambda config: None), job(exit_policy=policy(timeout=1e9)))
    assert run.outcome.outcome == "met"
    assert run.outcome.best is not None
    assert run.outcome.best.latency is None


def test_the_objective_decides(tmp_path: Path) -> None:
    for name, measured in (("modelsize", False), ("footprint", True), ("accuracy", False)):
        tuning = job(exit_policy=policy(timeout=1e9), objectives=(ObjectiveSpec(name),))
        run = tune(tmp_path / name, Model({"conv0": 0.01}), tuning)
        assert run.outcome.best is not None
        assert (run.outcome.best.footprint_bytes is not None) == measured
        if name == "accuracy":
            assert run.outcome.best.accuracy == 1.0


def test_without_evaluation_the_model_is_quantized_once(tmp_path: Path) -> None:
    run = tune(tmp_path, Model(NOTHING), job(evaluation=EvaluationSpec()), workers=3)
    assert (run.outcome.outcome, run.outcome.exit_code, run.model.judged) == ("not_judged", 0, [])
    assert run.outcome.best is not None
    assert run.outcome.best.verdict == "not_judged"
    assert run.outcome.best.accuracy is None
    assert run.outcome.exported is not None
    assert run.outcome.baseline is None


def test_performance_only_judges_nothing(tmp_path: Path) -> None:
    run = tune(tmp_path, Model(NOTHING), job(exit_policy=policy(performance_only=True)))
    assert (run.outcome.outcome, run.model.judged) == ("not_judged", [])
    assert run.outcome.best is not None
    assert run.outcome.best.latency is not None


# ----------------------------------------------------------------------------------------------------------- criterion


@pytest.mark.parametrize(
    ("criterion", "baseline", "cost", "met"),
    [
        (CriterionSpec("absolute", 0.125), 1.0, 0.125, True),
        (CriterionSpec("absolute", 0.125), 1.0, 0.1250001, False),
        (CriterionSpec("relative", 0.25), 0.5, 0.125, True),
        (CriterionSpec("relative", 0.25), 0.5, 0.126, False),
        (CriterionSpec("relative", 0.25, False), 0.5, 0.125, True),
        (CriterionSpec("relative", 0.25, False), 0.5, 0.126, False),
        (CriterionSpec("absolute", 0.0), 1.0, 0.0, True),
        (CriterionSpec("relative", 0.01), 0.0, 0.0, True),
        (CriterionSpec("relative", 0.01), 0.0, 0.001, False),
        (CriterionSpec("absolute", 0.1), 0.0, 0.05, True),
        (CriterionSpec("relative", 0.25), -4.0, 1.0, True),
        (CriterionSpec("relative", 0.25), -4.0, 1.1, False),
        (CriterionSpec("relative", 0.25, False), -4.0, 1.0, True),
        (CriterionSpec("relative", 0.25, False), -4.0, 1.1, False),
    ],
)
def test_the_default_config_meets_or_not(
    tmp_path: Path, criterion: CriterionSpec, baseline: float, cost: float, met: bool
) -> None:
    sign = 1 if criterion.higher_is_better else -1
    model = Model(
        baseline=baseline,
        higher_is_better=criterion.higher_is_better,
        of=lambda config: baseline - sign * (cost if config.quantized_ops else 0.0),
    )
    run = tune(tmp_path, model, job(criterion=criterion), workers=2)
    assert run.outcome.trials[0].met == met
    assert run.outcome.outcome == ("met" if met else "not_met")


def test_lower_is_better_falls_back_in_the_same_order(tmp_path: Path) -> None:
    lower = job(criterion=CriterionSpec("absolute", 0.1, False))
    up = tune(tmp_path / "up", Model(HARD))
    down = tune(tmp_path / "down", Model(HARD, higher_is_better=False, baseline=0.0), lower)
    assert down.outcome.fallback_order == up.outcome.fallback_order
    assert down.winner == up.winner
    assert down.outcome.op_impact == pytest.approx(up.outcome.op_impact)


def test_a_trial_without_a_number_never_meets(tmp_path: Path) -> None:
    run = tune(tmp_path, Model(of=lambda config: math.nan), workers=3)
    assert run.outcome.outcome == "not_met"
    assert {trial.verdict for trial in run.outcome.trials} == {"not_met"}


def test_a_number_is_a_better_base_than_none(tmp_path: Path) -> None:
    def of(config: TuningConfig) -> float:
        return math.nan if "conv1" in config.quantized_ops else 1.0

    for workers in (1, 4):
        run = tune(tmp_path / str(workers), Model(of=of), workers=workers)
        assert run.outcome.outcome == "met"
        assert run.outcome.best is not None
        assert run.outcome.best.label == "conv1"


def test_a_baseline_without_a_number_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match="NaN"):
        tune(tmp_path / "nan", Model(baseline=math.nan))
    with pytest.raises(UserCodeError, match="accuracy is infinite"):
        tune(tmp_path / "inf", Model(baseline=math.inf))


def test_a_share_of_nothing_is_said_to_be_no_tolerance(tmp_path: Path) -> None:
    """Such as the error of outputs that are compared with fp32's own."""
    relative = CriterionSpec("relative", 0.01, higher_is_better=False)
    run = tune(tmp_path, Model(baseline=0.0, higher_is_better=False), job(criterion=relative))
    assert any("give accuracy_criterion.absolute" in warning for warning in run.outcome.warnings)


def test_a_metric_to_optimize_must_be_a_number_of_fp32_too(tmp_path: Path) -> None:
    """Such as the signal-to-noise ratio of fp32 against itself: no gain over it can be told."""

    class SignalToNoise(Model):
        def _body(self, body: object) -> ResultBody:
            answer = super()._body(body)
            return replace(answer, metrics={"psnr": math.inf}) if isinstance(answer, Accuracy) else answer

    tuning = job(objectives=(ObjectiveSpec("metric", metric="psnr", higher_is_better=True),))
    with pytest.raises(UserCodeError, match="metric psnr is infinite"):
        tune(tmp_path, SignalToNoise(), tuning)


def test_every_sampling_size_is_tried(tmp_path: Path) -> None:
    tuning = job(calibration=CalibrationSpec(None, (100, 500)))

    def of(config: TuningConfig) -> float:
        return 1.0 if config.sampling_size == 500 or not config.quantized_ops else 0.5

    alone, together = (tune(tmp_path / str(n), Model(of=of), tuning, workers=n) for n in (1, 3))
    assert same(alone, together) == []
    assert alone.outcome.best is not None
    assert alone.outcome.best.config.sampling_size == 500
    asked = [body for _, request in alone.model.asked if isinstance(body := request.body, Calibrate)]
    found = [(body.sampling_size, body.histograms) for body in asked]
    assert found == [(100, False), (100, True), (500, False)], "calibrated once for each"


# ------------------------------------------------------------------------------------------------------------ resuming


@settings(max_examples=20, deadline=None)
@given(stops=st.lists(st.integers(1, 6), min_size=1, max_size=4), ranks=st.lists(st.integers(1, 5), min_size=5))
def test_an_interrupted_run_goes_on_where_it_was(stops: list[int], ranks: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = tune(Path(folder, "whole"), Model(HARD))
        model = Model(HARD)
        finished: set[str] = set()
        for stop, workers in zip(stops, ranks, strict=False):
            before = len(model.judged)
            part = tune(Path(folder, "parts"), model, workers=workers, interrupt_at=stop)
            assert not finished & set(model.judged[before:]), "nothing that was finished is judged again"
            known = [record.data for record in part.records if record.kind == "result"]
            finished = {data["key"].split(":")[1] for data in known if data["key"].startswith("judge:")}
            if part.outcome.outcome != "interrupted":
                break
            assert part.outcome.exit_code == 75
        before = len(model.judged)
        end = tune(Path(folder, "parts"), model, workers=ranks[-1])
        assert not finished & set(model.judged[before:])
    assert same(whole, end) == []


def test_a_finished_run_gives_its_result_again_and_judges_nothing(tmp_path: Path) -> None:
    model = Model(HARD)
    first = tune(tmp_path, model)
    asked = len(model.judged)
    for workers in (1, 3):
        again = tune(tmp_path, model, workers=workers)
        assert same(first, again) == []
        assert len(again.records) == len(first.records), "nor is anything journalled twice"
        assert again.outcome.best == first.outcome.best
    assert len(model.judged) == asked


def test_time_counts_on_after_a_resume(tmp_path: Path) -> None:
    tuning = job(exit_policy=policy(timeout=60))
    model = Model(NOTHING, seconds=lambda rank, request: 7.0)
    first = tune(tmp_path, model, tuning, interrupt_at=5)
    assert first.outcome.outcome == "interrupted"
    second = tune(tmp_path, model, tuning)
    assert second.outcome.outcome == "budget_spent"
    assert second.seconds < 50


def test_another_job_in_the_workspace_is_refused_with_the_difference(tmp_path: Path) -> None:
    tune(tmp_path, Model(HARD))
    with pytest.raises(WorkspaceError, match=r"tolerance|criterion"):
        tune(tmp_path, Model(HARD), job(criterion=CriterionSpec("absolute", 0.2)))
    tune(tmp_path, Model(HARD), job(exit_policy=policy(max_trials=50)))


def test_a_timeout_in_the_middle_of_a_probe_ends_it(tmp_path: Path) -> None:
    model = Model(
        dict.fromkeys((f"conv{index}" for index in range(40)), 0.2),
        convs=40,
        seconds=lambda rank, request: 25.0 if isinstance(request.body, Probe) else 1.0,
    )
    tuning = job(exit_policy=policy(timeout=60), strategy=StrategySpec("mse"))
    run = tune(tmp_path, model, tuning)
    probes = [request for _, request in model.asked if isinstance(request.body, Probe)]
    assert 0 < len(probes) < 5, "of more than ten pieces"
    assert run.outcome.outcome == "budget_spent"
    assert run.seconds < 60 + 25


def test_values_that_are_not_finite_are_told_on_every_start(tmp_path: Path) -> None:
    class Planted(Model):
        def answer(self, rank: int, request: Request) -> tuple[ResultBody, float]:
            body, seconds = super().answer(rank, request)
            if isinstance(body, Accuracy) and isinstance(request.body, Baseline):
                body = replace(body, warnings=("fp32 gives NaN",))
            if isinstance(body, Statistics):
                statistics = CalibrationStatistics()
                tensors = {"x": [1, np.nan, 2], "y": [np.nan] * 3, "z": [1, 2, 3]}
                statistics.add(rank, {name: np.array(values, np.float32) for name, values in tensors.items()})
                body = replace(body, blob=statistics.to_bytes(), nonfinite={"image": (1, 2)})
            return body, seconds

    for start in range(2):
        warnings = tune(tmp_path, Planted(), workers=2).outcome.warnings
        assert "fp32 gives NaN" in warnings
        (tensors,) = (warning for warning in warnings if "out of the ranges of 2 tensors" in warning)
        assert "y (6, all there are: no range), x (2)" in tensors
        data = [warning for warning in warnings if "image (2 NaN and 4 infinite)" in warning]
        assert len(data) == (start == 0), "the data are not read again"
