"""A run that never happened, as the engine would tell it. ``python -m tests.report.fabricated`` plays it.

Options: ``--pause SECONDS`` between events, ``--outcome NAME``, ``--quiet``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from distune.config.job import ComponentSpec, DataloaderSpec, EvaluationSpec, MetricSpec, ModelSpec, TuningJob
from distune.distributed.transport import WorkerInfo
from distune.engine import events
from distune.engine.outcome import OutcomeName, RunOutcome, StageRecord, Timing
from distune.report.build import result_of
from distune.report.console import ConsoleListener
from distune.space.capability import Capability, OpInfo
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Trial
from distune.trial.messages import Accuracy, Exported, Inspection, Judge, Latency

INT8 = OpConfig("static", TensorConfig("uint8", "asym"), TensorConfig("int8"))
NAMES = ("conv1", "conv2_dw", "conv2_pw", "relu", "fc")
OPS = tuple(
    OpInfo(name, "Conv", (INT8, FP32), "conv2_pw" if name == "relu" else name, has_weight=name != "relu")
    for name in NAMES
)
SPACE = TuningSpace(OPS)
WORKERS = tuple(WorkerInfo(rank, "node1" if rank < 2 else "node2", rank % 2, "Xeon", ("avx2",)) for rank in range(4))
JOB = TuningJob(
    model=ModelSpec("onnxruntime", "/models/mobilenetv1_cifar10.onnx"),
    evaluation=EvaluationSpec(DataloaderSpec(ComponentSpec("Npz")), (MetricSpec(ComponentSpec("topk")),)),
    workspace="/runs/one",
)
LATENCY = Latency(0.527, 0.519, 0.536, 2.22, 4.21, 1, 1, 40, "node2", ratios=(0.52, 0.53))
BASELINE = Accuracy(0.8158, 0.8158, 0.8158, {"topk": 0.8158}, 10000)
TARGET = 0.8158 * 0.99


def config(*fp32: str) -> TuningConfig:
    """Everything int8 but ``fp32``."""
    return TuningConfig(tuple((name, FP32 if name in fp32 else INT8) for name in NAMES), sampling_size=100)


def trial(number: int, stage: str, accuracy: float | None, *fp32: str) -> Trial:
    """A judged trial; ``accuracy`` ``None`` for one that failed."""
    verdict = "failed" if accuracy is None else "met" if accuracy >= TARGET else "not_met"
    return Trial(
        number,
        stage,
        config(*fp32),
        verdict,  # type: ignore[arg-type]
        label=" ".join(fp32),
        accuracy=accuracy,
        accuracy_low=accuracy,
        accuracy_high=accuracy,
        metrics={} if accuracy is None else {"topk": accuracy},
        samples=0 if accuracy is None else 10000,
        size_bytes=340_000,
        ops_executed_int8=4 - len(fp32),
        rank=number % 4,
        host="node1",
        start_s=number * 2.0,
        end_s=number * 2.0 + 6.5,
        reason="rank 2 on node2: signal 11 (segmentation fault)" if accuracy is None else "",
    )


TRIALS = (
    trial(1, "default", 0.1012),
    trial(2, "instance-wise", 0.7741, "conv1"),
    trial(3, "instance-wise", 0.3204, "conv2_dw"),
    trial(4, "instance-wise", None, "conv2_pw"),
    trial(5, "instance-wise", 0.1013, "fc"),
    replace(trial(6, "accumulated", 0.8123, "conv1", "conv2_dw"), latency=LATENCY),
)


def outcome(name: OutcomeName = "met") -> RunOutcome:
    """The outcome of the run, with an ending of choice."""
    judged = name != "not_judged"
    best = TRIALS[5] if name == "met" else None if name in ("failed", "interrupted") else TRIALS[1]
    if not judged:
        best = replace(
            trial(1, "default", 0.5), verdict="not_judged", accuracy=None, samples=0, latency=LATENCY, label=""
        )
    return RunOutcome(
        outcome=name,
        job=JOB,
        ranks=4,
        workers=WORKERS,
        lost_ranks={},
        inspection=Inspection(Capability(OPS), 1_210_000, {"onnxruntime": "1.31.1"}, {"intra_op_num_threads": 1}),
        space=SPACE,
        baseline=BASELINE if judged else None,
        target=TARGET if judged else None,
        best=best,
        exported=Exported({"model.onnx": b""}, {}, 2) if best else None,
        trials=TRIALS if judged else (),
        stages=(
            StageRecord("default", "first", "base", 1, 1, 6.5),
            StageRecord("instance-wise", "none", "rank", 4, 4, 9.0),
            StageRecord("accumulated", "first", "prefix", None, 1, 6.6, True),
        ),
        fallback_order=("conv1", "conv2_dw", "fc"),
        op_impact={"conv1": 0.6729, "conv2_dw": 0.2192, "fc": 0.0001},
        warnings=("Softmax stays in fp32: this build has no int8 kernel for it",),
        skipped=("op-type-wise: 12 of 144 candidates left out for want of budget",),
        timing=Timing(61.0, 2.0, 3.1, 1.2, 0.8, 30.0, 26.0, 4.0, 12.0),
        failure={"interrupted": "SIGUSR1", "failed": "no worker is left"}.get(name, ""),
    )


def story(name: OutcomeName = "met") -> Iterator[events.RunEvent]:
    """Every event of the run."""
    end = outcome(name)
    yield events.RunStarted(JOB, WORKERS)
    yield events.SpaceBuilt(SPACE, 0)
    yield events.Warned(end.warnings[0])
    yield events.CalibrationStarted(100)
    yield events.CalibrationDone(100, 1.2)
    yield events.BaselineKnown(0.8158, TARGET, True, 10000, 3.1)
    best: Trial | None = None
    judge = Judge(config())
    for record in end.stages:
        of_stage = [item for item in TRIALS if item.stage == record.name]
        total = len(of_stage) if record.candidates else None
        yield events.StageStarted(record.name, total, 90)
        for index, item in enumerate(of_stage):
            yield events.WorkersBusy(dict.fromkeys(range(min(4, len(of_stage) - index)), judge), tuple(range(4)), index)
            if item.accuracy is not None and (best is None or item.accuracy > (best.accuracy or 0)):
                best = item
            yield events.TrialDecided(item, index, total, False, best)
        met = next((item for item in of_stage if item.met), None)
        yield events.StageEnded(record.name, met, len(of_stage), record.seconds)
    yield events.Warned("worker lost: killed by signal 9; its work is handed out again", 3, "node2")
    yield events.LatencyMeasured(TRIALS[5], LATENCY)
    yield events.RunEnded(end)


def main() -> None:
    """Play the story on this terminal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--outcome", default="met")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    with ConsoleListener(quiet=options.quiet) as console:
        for event in story(options.outcome):
            console.on(event)
            time.sleep(options.pause)
        console.show(result_of(outcome(options.outcome)), Path(JOB.workspace))


if __name__ == "__main__":
    main()
