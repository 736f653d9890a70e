"""What a worker answers, whatever it is asked and whatever goes wrong."""

from __future__ import annotations

import gc
import json
import random
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distune.config.job import (
    CalibrationSpec,
    ComponentSpec,
    EvaluationSpec,
    LatencySpec,
    MetricSpec,
    ModelSpec,
    TrainSpec,
    TrialLimits,
    TuningJob,
)
from distune.space.op_config import FP32
from distune.trial import messages as m
from distune.trial.runner import Runner
from tests.trial.linear_backend import BROKEN, FRAMEWORK, HUGE, INT8, LinearBackend, config

INPUTS = 6
CLASSES = 3
QUICK = LatencySpec(warmup=1, iteration=32)


def _batches(seed: int, samples: int, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, INPUTS)).astype(np.float32)
    labels = (x @ _weight()).argmax(axis=1)
    return [(x[i : i + batch_size], labels[i : i + batch_size]) for i in range(0, samples, batch_size)]


def _weight() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(INPUTS, CLASSES)).astype(np.float32)


def _job(**changes: Any) -> TuningJob:
    topk = MetricSpec(ComponentSpec("topk", {}))
    job = TuningJob(
        ModelSpec(FRAMEWORK, live=_weight()),
        calibration=CalibrationSpec(_batches(1, 10, 2), (8,)),
        evaluation=EvaluationSpec(_batches(2, 40, 8), (topk,), performance=QUICK),
    )
    return replace(job, **changes)


def _judged_by(function: Callable[[Any], Any]) -> TuningJob:
    return _job(evaluation=EvaluationSpec(eval_func=function, performance=QUICK))


class Worker:
    """A runner, asked with bodies alone."""

    def __init__(self, job: TuningJob | None = None, calibrated: bool = True) -> None:
        self.runner = Runner(job or _job(), "node7", 3)
        self._asked = 0
        if calibrated:
            blob = self.ask(m.Calibrate(8, 0, 1)).blob
            self.runner.receive(m.LoadStatistics((), 8, blob))

    def ask(self, body: m.RequestBody) -> Any:
        self._asked += 1
        result = self.runner.answer(m.Request(self._asked, body, attempt=2, run="r"))
        assert (result.request_id, result.attempt, result.run, result.rank) == (self._asked, 2, "r", 3)
        return result.body

    @property
    def backend(self) -> LinearBackend:
        backend = self.runner._backend()
        assert isinstance(backend, LinearBackend)
        return backend


def test_a_run_from_inspection_to_export() -> None:
    worker = Worker()
    inspection = worker.ask(m.Inspect())
    assert inspection.capability.ops[0].name == "linear"
    assert inspection.data == {
        "samples": 40,
        "batch_size": 8,
        "calibration_samples": 10,
        "calibration_batch_size": 2,
    }
    baseline = worker.ask(m.Baseline())
    assert (baseline.value, baseline.samples, baseline.verdict, baseline.size_bytes) == (1.0, 40, None, None)
    judged = worker.ask(m.Judge(config(), target=0.5))
    assert judged.verdict is True
    assert judged.low == judged.value == judged.high
    assert judged.size_bytes == INPUTS * CLASSES
    assert judged.ops_executed_int8 is None, "reading the optimised graph is slow: only for the model that is exported"
    latency = worker.ask(m.MeasureLatency(config()))
    assert latency.ci_low <= latency.ratio <= latency.ci_high
    assert (latency.batch_size, latency.threads, latency.host) == (1, 1, "node7")
    exported = worker.ask(m.Export(config()))
    assert exported.files.keys() == {"weight.bin"}
    assert exported.ops_executed_int8 == 1
    worker.runner.close()
    worker.runner.close()


def test_footprint_is_that_of_processes_of_their_own() -> None:
    footprint = Worker().ask(m.MeasureFootprint(config()))
    assert isinstance(footprint, m.Footprint)
    for peak in (footprint.candidate_bytes, footprint.baseline_bytes):
        assert 64 << 20 < peak < 512 << 20


def test_an_accuracy_exactly_on_target_meets() -> None:
    worker = Worker(_judged_by(lambda model: 0.75))
    assert worker.ask(m.Judge(config(), target=0.75)).verdict is True
    assert worker.ask(m.Judge(config(), target=0.75, higher_is_better=False)).verdict is True
    assert worker.ask(m.Judge(config(), target=0.76)).verdict is False
    assert Worker(_judged_by(lambda model: float("nan"))).ask(m.Judge(config(), target=0.0)).verdict is False


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_of_the_calibration_data_are_the_whole_once(shards: int) -> None:
    worker = Worker(calibrated=False)
    answers = [worker.ask(m.Calibrate(7, shard, shards)) for shard in range(shards)]
    assert sum(answer.samples for answer in answers) == 7
    seen: dict[str, Any] = {}
    for answer in answers:
        part = json.loads(answer.blob)
        assert not part.keys() & seen.keys()
        seen |= part
    assert sorted(seen) == ["0", "1", "2", "3"]


def test_statistics_that_arrive_before_anything_else_are_used() -> None:
    blob = Worker(calibrated=False).ask(m.Calibrate(8, 0, 1)).blob
    worker = Worker(calibrated=False)
    worker.runner.receive(m.LoadStatistics((), 8, blob))
    assert isinstance(worker.ask(m.Judge(config())), m.Accuracy)


def test_work_that_is_wanted_no_longer_ends_between_two_batches_and_spoils_nothing() -> None:
    worker = Worker()
    whole = worker.ask(m.Judge(config(), target=0.5))
    for body in (m.Judge(config(), target=0.5), m.Baseline(), m.Survey(0, 2), m.Calibrate(8, 0, 1)):
        left = [False, False, True]
        worker.runner.stop_where(lambda left=left: left.pop(0))
        assert worker.ask(body) == m.Failure("cancelled", "rank 3 on node7: cancelled by the master")
        assert left == []
        worker.runner.stop_where(lambda: False)
        assert worker.ask(m.Judge(config(), target=0.5)).value == whole.value


def test_probe_takes_its_share_of_the_first_batches() -> None:
    worker = Worker()
    assert worker.ask(m.Probe("op_mse", config())).scores == {"linear": 4.0}
    assert worker.ask(m.Probe("op_mse", config(), args={"batches": 3})).scores == {"linear": 6.0}
    assert worker.ask(m.Probe("op_mse", config(), args={"batches": 3}, shard=1, shards=2)).scores == {"linear": 2.0}
    assert worker.ask(m.Probe("op_mse", config(), args={"batches": 3}, shard=4, shards=5)).scores == {}


# --------------------------------------------------------------------------------------------------- what is kept


def test_what_was_just_judged_is_not_quantized_again() -> None:
    worker = Worker()
    for body in (m.Judge(config()), m.MeasureLatency(config()), m.Export(config())):
        worker.ask(body)
    assert worker.backend.loads.count((config().hash, 1)) == 1
    worker.ask(m.Judge(config(FP32)))
    worker.ask(m.Judge(config()))
    assert worker.backend.loads.count((config().hash, 1)) == 2, "one model is kept, not two"


def test_another_number_of_threads_is_another_model() -> None:
    job = _job()
    worker = Worker(replace(job, evaluation=replace(job.evaluation, performance=replace(QUICK, cores_per_instance=2))))
    worker.ask(m.Judge(config()))
    assert worker.ask(m.MeasureLatency(config())).threads == 2
    assert worker.backend.loads == [(config().hash, 1), (config().hash, 2), ("fp32", 2)]


@pytest.mark.parametrize(("base", "loads"), [("", 2), (config().hash, 1)])
def test_a_closed_stage_drops_all_but_its_base(base: str, loads: int) -> None:
    worker = Worker()
    worker.ask(m.Judge(config()))
    worker.runner.receive(m.StageClosed("stage", base))
    worker.ask(m.Judge(config()))
    assert len(worker.backend.loads) == loads


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_the_backend_hears_of_a_stage_whose_trials_begin_alike(limit: int) -> None:
    worker = Worker(_job(shared_prefix_bytes=limit))
    worker.ask(m.Baseline())
    worker.runner.receive(m.StageOpened("ranking", config()))
    assert worker.backend.shares == [], "until a trial needs it"
    worker.ask(m.Judge(config(FP32)))
    worker.ask(m.Judge(config()))
    worker.runner.receive(m.StageClosed("ranking", ""))
    assert worker.backend.shares == [(config().hash, 40)] * bool(limit) + [("", 0)]


def test_what_trials_have_in_common_takes_a_quarter_of_the_ranks_own_share_at_most() -> None:
    worker = Worker(_job(limits=TrialLimits(memory_bytes=4000)))
    worker.runner.receive(m.StageOpened("ranking", config()))
    worker.ask(m.Baseline())
    worker.ask(m.Judge(config()))
    assert worker.backend.share_limits == [1000]


def test_a_failed_trial_leaves_nothing_behind() -> None:
    held: list[weakref.ref[Any]] = []

    class Big:
        def __init__(self) -> None:
            self.cycle = self

    def score(model: Any) -> float:
        big = Big()
        held.append(weakref.ref(big))
        raise ValueError("after much was allocated")

    worker = Worker(_judged_by(score))
    gc.disable()
    try:
        assert worker.ask(m.Judge(config())).kind == "user_error"
        assert held[0]() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------------------- seeds


def _draws(order: list[Any]) -> dict[str, float]:
    worker = Worker(_judged_by(lambda model: float(np.random.rand() + random.random())))
    return {each.hash: worker.ask(m.Judge(each)).value for each in order}


def test_random_numbers_depend_on_the_config_and_not_on_what_ran_before() -> None:
    first, second = config(), config(FP32)
    drawn = _draws([first, second])
    assert drawn == _draws([second, first])
    assert drawn[first.hash] != drawn[second.hash]


class Shuffled:
    """Batches in another order every time they are read, by NumPy's own random numbers."""

    def __iter__(self) -> Any:
        batches = _batches(2, 40, 8)
        return (batches[index] for index in np.random.permutation(len(batches)))


def test_fp32_sees_the_same_shuffled_data_on_one_rank_as_in_shards_on_several() -> None:
    job = _job()
    shuffled = replace(job, evaluation=replace(job.evaluation, dataloader=Shuffled()))
    surveys = tuple(Worker(shuffled).ask(m.Survey(shard, 3)) for shard in range(3))
    assert len({surveyed.data for surveyed in surveys}) == 1
    alone, together = Worker(shuffled).ask(m.Baseline()), Worker(shuffled).ask(m.Baseline(surveys))
    assert (together.value, together.order) == (alone.value, alone.order)


# ------------------------------------------------------------------------------------------------------- failures


def test_an_error_of_the_backend_is_a_failure_with_its_traceback() -> None:
    worker = Worker()
    failure = worker.ask(m.Judge(config(BROKEN)))
    assert isinstance(failure, m.Failure)
    assert (failure.kind, failure.error, failure.usage) == ("error", "ValueError", False)
    assert failure.message == "rank 3 on node7: ValueError: no kernel for int16"
    assert "Traceback" in failure.detail
    assert isinstance(worker.ask(m.Judge(config(INT8))), m.Accuracy), "the next trial is answered as if nothing was"


def test_out_of_memory_is_told_apart() -> None:
    assert Worker().ask(m.Judge(config(HUGE))).kind == "memory"


def test_an_uncalibrated_config_is_a_failed_trial() -> None:
    failure = Worker().ask(m.Judge(config(INT8, sampling_size=99)))
    assert (failure.kind, failure.message) == ("error", "rank 3 on node7: not calibrated")


def test_code_of_the_user_that_raises_is_shown_with_its_traceback() -> None:
    def score(model: Any) -> float:
        raise KeyError("no such column")

    failure = Worker(_judged_by(score)).ask(m.Baseline())
    assert (failure.kind, failure.usage) == ("user_error", True)
    assert failure.message.startswith("rank 3 on node7: ")
    assert "no such column" in failure.message
    assert "in score" in failure.detail
    assert "\n" not in failure.message


def test_code_of_the_user_that_exits_does_not_end_the_worker() -> None:
    failure = Worker(_judged_by(lambda model: sys.exit(3))).ask(m.Baseline())
    assert (failure.kind, failure.error) == ("user_error", "SystemExit")
    assert "sys.exit(3)" in failure.detail
    assert "runner.py" not in failure.detail.replace("test_runner.py", "")


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(model: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Worker(_judged_by(interrupted)).ask(m.Baseline())


def test_a_wrong_model_is_the_users_to_mend_whatever_is_asked() -> None:
    worker = Worker(_job(model=ModelSpec(FRAMEWORK)), calibrated=False)
    for body in (m.Inspect(), m.Baseline(), m.Judge(config())):
        failure = worker.ask(body)
        assert (failure.error, failure.usage, failure.detail) == ("ModelError", True, "")


# ------------------------------------------------------------------------------------------------------ inspection


def _wrong_data(which: str) -> TuningJob:
    job = _job()
    bad = [(np.zeros((4, INPUTS + 1), np.float32), np.zeros(4, np.int64))]
    unlabelled = [np.zeros((4, INPUTS), np.float32)]
    match which:
        case "evaluation":
            return replace(job, evaluation=replace(job.evaluation, dataloader=bad))
        case "calibration":
            return replace(job, calibration=CalibrationSpec(bad))
        case "labels":
            return replace(job, evaluation=replace(job.evaluation, dataloader=unlabelled))
        case _:
            return replace(job, calibration=CalibrationSpec())


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("evaluation", "the evaluation data do not fit the model"),
        ("calibration", "the calibration data do not fit the model"),
        ("labels", "labels"),
        ("none", "static quantization needs calibration data"),
    ],
)
def test_wrong_data_fail_at_the_start(which: str, said: str) -> None:
    failure = Worker(_wrong_data(which), calibrated=False).ask(m.Inspect())
    assert isinstance(failure, m.Failure)
    assert (failure.error, failure.usage, failure.detail) == ("DataError", True, "")
    assert said in failure.message


def test_inspection_does_not_call_the_users_eval_func() -> None:
    calls: list[Any] = []
    worker = Worker(_judged_by(lambda model: calls.append(model) or 0.5))
    assert isinstance(worker.ask(m.Inspect()), m.Inspection)
    assert calls == []
    missing = _job(evaluation=EvaluationSpec(eval_func="no.such:function", performance=QUICK))
    assert isinstance(Worker(missing).ask(m.Inspect()), m.Inspection), "nor looks for it: not every run needs it"


def test_the_digest_tells_models_and_data_apart() -> None:
    job = _job()
    same, again = (Worker(_job(), calibrated=False).ask(m.Inspect()).digest for _ in range(2))
    other_data = replace(job, calibration=CalibrationSpec(_batches(9, 10, 2)))
    other_model = replace(job, model=ModelSpec(FRAMEWORK, live=np.ones((INPUTS, CLASSES + 1), np.float32)))
    training, other_training = (replace(job, train=TrainSpec(_batches(seed, 10, 2))) for seed in (1, 2))
    others = (other_data, other_model, training, other_training)
    assert same == again
    assert len({same, *(Worker(j, calibrated=False).ask(m.Inspect()).digest for j in others)}) == 5


def test_fewer_calibration_samples_than_asked_for_are_told() -> None:
    job = _job(calibration=CalibrationSpec(_batches(1, 10, 2), (8, 100)))
    assert any("10 samples" in warning for warning in Worker(job).ask(m.Inspect()).warnings)


# ----------------------------------------------------------------------------------------------- the data of latency


def test_latency_without_any_data_uses_zeros_of_the_models_shape() -> None:
    job = _job(evaluation=EvaluationSpec(performance=replace(QUICK, batch_size=5)), calibration=CalibrationSpec())
    assert Worker(job, calibrated=False).ask(m.MeasureLatency(config(FP32))).batch_size == 5


def test_a_clock_of_ones_own_dates_the_results() -> None:
    now = [100.0]
    runner = Runner(_judged_by(lambda model: now.__setitem__(0, now[0] + 5) or 0.5), "h", 0, clock=lambda: now[0])
    now[0] += 2
    result = runner.answer(m.Request(1, m.Baseline()))
    assert (result.start_s, result.end_s) == (2.0, 7.0)


@pytest.mark.parametrize("early_verdict", [True, False])
def test_nan_in_the_data_is_told_with_the_statistics_and_the_baseline(early_verdict: bool) -> None:
    calibration, evaluation = _batches(1, 10, 2), _batches(2, 40, 8)
    calibration[1][0][0, :4] = np.nan
    evaluation[0][0][3, 0] = np.nan
    job = _job(calibration=CalibrationSpec(calibration, (8,)), early_verdict=early_verdict)
    worker = Worker(replace(job, evaluation=replace(job.evaluation, dataloader=evaluation)), calibrated=False)
    assert worker.ask(m.Calibrate(8, 0, 1)).nonfinite == {"x": (4, 0)}
    data, outputs = worker.ask(m.Baseline()).warnings
    assert "x (1 NaN)" in data
    assert "y (3 NaN)" in outputs
    assert Worker().ask(m.Baseline()).warnings == ()
