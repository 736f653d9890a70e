"""Whole runs of the tuner on a virtual clock: a synthetic model answers, everything else is real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distune.backends.statistics import CalibrationStatistics
from distune.config.job import CalibrationSpec, CriterionSpec, EvaluationSpec, ExitPolicy, ModelSpec, TuningJob
from distune.distributed.simulated import Faults, SimulatedTransport
from distune.engine.outcome import RunOutcome
from distune.engine.tuner import Tuner
from distune.evaluation.criterion import meets
from distune.journal.journal import read_records
from distune.journal.record import Record
from distune.journal.workspace import Workspace
from distune.space.op_config import TuningConfig
from distune.trial.messages import (
    Accuracy,
    Baseline,
    Broadcast,
    Calibrate,
    Export,
    Exported,
    Failure,
    Footprint,
    Inspect,
    Inspection,
    Judge,
    Latency,
    LoadStatistics,
    MeasureFootprint,
    MeasureLatency,
    Probe,
    ProbeAnswer,
    Request,
    ResultBody,
    Statistics,
    Survey,
    Surveyed,
)
from tests import synthetic


@dataclass
class Model:
    """A model whose accuracy is fp32's less what each quantized op costs.

    Attributes:
        cost: Accuracy that quantizing an op costs, by op name.
        of: Accuracy by config; overrides ``cost``.
        failing: Configs that cannot be judged.
        ratio: Latency ratio by config; ``None``: it cannot be measured.
        interval: Half the width of the latency's interval.
        seconds: What a request takes, by rank and request.
        on_judge: Told the number of each judging that begins, from 1.
        asked: Every request that began, with the worker that it began on.
    """

    cost: Mapping[str, float] = field(default_factory=dict)
    baseline: float = 1.0
    higher_is_better: bool = True
    convs: int = 4
    matmuls: int = 1
    of: Callable[[TuningConfig], float] | None = None
    failing: Callable[[TuningConfig], bool] = lambda config: False
    ratio: Callable[[TuningConfig], float | None] = lambda config: 1.0 - 0.1 * len(config.quantized_ops)
    interval: float = 0.001
    seconds: Callable[[int, Request], float] = lambda rank, request: 1.0
    data: Callable[[int], str] = lambda rank: ""
    on_judge: Callable[[int], None] = lambda number: None
    asked: list[tuple[int, Request]] = field(default_factory=list)

    @property
    def judged(self) -> list[str]:
        """Hash of every config that a worker began to judge, in that order."""
        return [request.body.config.hash for _, request in self.asked if isinstance(request.body, Judge)]

    def accuracy(self, config: TuningConfig) -> float:
        """Accuracy of the model of ``config``."""
        if self.of is not None:
            return self.of(config)
        lost = 1.0 - synthetic.accuracy(config, self.cost)
        return self.baseline - lost if self.higher_is_better else self.baseline + lost

    def answer(self, rank: int, request: Request) -> tuple[ResultBody, float]:
        """For ``SimulatedTransport``."""
        self.asked.append((rank, request))
        if isinstance(request.body, Judge):
            self.on_judge(len(self.judged))
        body = self._body(request.body)
        if isinstance(body, Surveyed):
            body = replace(body, data=self.data(rank))
        return body, self.seconds(rank, request)

    def _body(self, body: Any) -> ResultBody:
        match body:
            case Inspect():
                capability = synthetic.capability(self.convs, self.matmuls)
                return Inspection(capability, 1000, {}, {}, digest="model", fp32_in_shards=True)
            case Survey():
                return Surveyed(f"{body.shard} of {body.shards}".encode())
            case Baseline():
                count = len(body.surveys)
                assert [survey.blob.decode() for survey in body.surveys] == [f"{n} of {count}" for n in range(count)]
                return _scored(self.baseline)
            case Calibrate():
                statistics = CalibrationStatistics(body.histograms)
                statistics.add(body.shard, {"x": np.ones(4, np.float32)})
                return Statistics(statistics.to_bytes(), body.sampling_size // body.shards, 1.0)
            case Judge() if self.failing(body.config):
                return Failure("error", "planted failure")
            case Judge():
                value = self.accuracy(body.config)
                verdict = None if body.target is None else meets(value, body.target, body.higher_is_better)
                return _scored(value, verdict, 1000 - 10 * len(body.config.quantized_ops))
            case MeasureLatency():
                ratio = self.ratio(body.config)
                if ratio is None:
                    return Failure("error", "planted failure")
                low, high = ratio - self.interval, ratio + self.interval
                return Latency(ratio, low, high, ratio, 1.0, 1, 1, 10, "simulated")
            case MeasureFootprint():
                return Footprint(1000 - len(body.config.quantized_ops), 1000)
            case Export():
                return Exported({"model.onnx": body.config.hash.encode()}, {})
        return ProbeAnswer({group: self.cost.get(group, 0.0) for group in body.ops})


def _scored(value: float, verdict: bool | None = None, size: int | None = None) -> Accuracy:
    return Accuracy(
        value,
        value,
        value,
        {"accuracy": value},
        100,
        verdict=verdict,
        size_bytes=size,
    )


def job(**changes: Any) -> TuningJob:
    """An absolute criterion of 0.1, judged by an ``eval_func`` that no synthetic worker calls."""
    plain = TuningJob(
        ModelSpec("onnxruntime", "synthetic.onnx"),
        calibration=CalibrationSpec(None, (100,)),
        criterion=CriterionSpec("absolute", 0.1),
        evaluation=EvaluationSpec(eval_func="synthetic:score"),
    )
    return replace(plain, **changes)


@dataclass(frozen=True)
class Run:
    """What came of a run."""

    outcome: RunOutcome
    records: list[Record]
    model: Model
    seconds: float

    @property
    def stages(self) -> list[str]:
        """Names of the stages in which something was decided."""
        return [stage.name for stage in self.outcome.stages if stage.judged]

    @property
    def winner(self) -> str:
        """Hash of the winner's config."""
        assert self.outcome.best is not None
        return self.outcome.best.config.hash


def tune(
    path: Path,
    model: Model,
    tuning: TuningJob | None = None,
    *,
    workers: int = 1,
    faults: Faults | None = None,
    interrupt_at: int | None = None,
) -> Run:
    """Run, or resume, in the workspace ``path``.

    Args:
        interrupt_at: The judging (of this start) at which somebody asks the run to stop.
    """
    loaded: dict[int, dict[int, bool]] = {}

    def hear(rank: int, broadcast: Broadcast) -> None:
        if isinstance(broadcast, LoadStatistics):
            loaded.setdefault(rank, {})[broadcast.sampling_size] = CalibrationStatistics.from_bytes(
                broadcast.blob
            ).histograms

    def answer(rank: int, request: Request) -> tuple[ResultBody, float]:
        _need(request.body, loaded.get(rank, {}))
        return model.answer(rank, request)

    transport = SimulatedTransport(answer, workers, faults, hear)
    already = len(model.judged)
    with Workspace.open(path) as workspace:
        tuner = Tuner(tuning or job(), transport, workspace)

        def on_judge(number: int) -> None:
            if number - already == interrupt_at:
                tuner.interrupt("asked to")

        model.on_judge = on_judge
        outcome = tuner.run()
        seconds = transport.now()
        transport.close(outcome.exit_code)
        return Run(outcome, read_records(workspace.journal), model, seconds)


def _need(body: Any, loaded: Mapping[int, bool]) -> None:
    """A real worker cannot make a model of statistics that it has not got."""
    config: TuningConfig | None = getattr(body, "config", None)
    if config is None or not config.sampling_size:
        return
    assert config.sampling_size in loaded, f"{body}: the worker has no statistics"
    others = (
        [TuningConfig.from_json(body.args["quantized"])] if isinstance(body, Probe) and "quantized" in body.args else []
    )
    for needed in (config, *others):
        assert loaded[config.sampling_size] or not needed.needs_histograms, f"{body}: values were not counted"


def policy(timeout: float = 0.0, max_trials: int = 100, performance_only: bool = False) -> ExitPolicy:
    """An exit policy."""
    return ExitPolicy(timeout, max_trials, performance_only)
