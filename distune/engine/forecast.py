"""How long a run may take: the real engine and strategy on simulated workers, with durations measured on the model.

Nobody knows before a run which configs will meet. So the same run is simulated for three models: one whose first
config meets, one of which a quarter of the op groups has to go back to floating point, and one that never meets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from distune.backends.statistics import CalibrationStatistics
from distune.config.job import TuningJob
from distune.distributed.simulated import SimulatedTransport
from distune.engine.outcome import StageRecord
from distune.engine.tuner import Tuner
from distune.journal.workspace import Workspace
from distune.space.op_config import TuningConfig
from distune.trial import messages as m

Scenario = Literal["easy", "hard", "never"]

SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
"""``easy``: the first config meets; ``hard``: a quarter of the groups must fall back; ``never``: nothing meets."""

_SENSITIVE = 4
"""Of the hard model one group in so many must fall back."""
_BASELINE = 1.0
_LOST = 0.5
"""Accuracy that a sensitive group costs: more than any criterion allows."""


@dataclass(frozen=True)
class Durations:
    """Seconds of one piece of work on one rank.

    Attributes:
        startup_s: Loading model and data.
        baseline_s: Scoring fp32 completely.
        calibrate_s: Calibrating with one sample.
        quantize_s: Making the model of a config.
        evaluate_s: Scoring a quantized model completely.
        latency_s: One latency measurement.
        probe_s: Running a quantized model on one batch.
        spread: How long trials took, over their mean: each trial takes as long as one of these. Empty: all alike.
        by_place: The same of trials that leave one op alone in floating point, from the first op to the last: such a
            trial takes as long as that of the op at the same place. Empty: as others.
    """

    startup_s: float
    baseline_s: float
    calibrate_s: float
    quantize_s: float
    evaluate_s: float
    latency_s: float
    probe_s: float
    spread: tuple[float, ...] = ()
    by_place: tuple[float, ...] = ()

    def trial_s(self, config: TuningConfig) -> float:
        """Seconds of making and scoring the model of ``config``."""
        factor = self._at_place(config)
        if factor is None:
            factor = self.spread[int(config.hash[:8], 16) % len(self.spread)] if self.spread else 1.0
        return factor * (self.quantize_s + self.evaluate_s)

    def _at_place(self, config: TuningConfig) -> float | None:
        """What ``by_place`` says of ``config``; ``None`` where that is of other trials."""
        if not self.by_place:
            return None
        quantized = set(config.quantized_ops)
        alone = [place for place, (name, _) in enumerate(config.ops) if name not in quantized]
        return self.by_place[alone[0] * len(self.by_place) // len(config.ops)] if len(alone) == 1 else None


@dataclass(frozen=True)
class Forecast:
    """A simulated run.

    Attributes:
        seconds: Wall time, each rank with a core of its own.
        busy: Share of the ranks' time that is work.
    """

    scenario: Scenario
    ranks: int
    seconds: float
    busy: float
    trials: int
    stages: tuple[StageRecord, ...]


def forecast(
    job: TuningJob, inspection: m.Inspection, durations: Durations, scenario: Scenario, ranks: int
) -> Forecast:
    """Simulate the run of ``job``.

    Raises:
        UsageError: The strategy cannot run with these settings.
    """
    worker = _Worker(job, inspection, durations, scenario)
    transport = SimulatedTransport(lambda rank, request: worker.answer(request), ranks)
    with tempfile.TemporaryDirectory(prefix="distune-forecast-") as folder, Workspace.open(Path(folder)) as workspace:
        outcome = Tuner(job, transport, workspace).run()
        seconds = transport.now()
        transport.close(outcome.exit_code)
    busy = 1 - outcome.timing.idle_s / (seconds * ranks) if seconds else 1.0
    return Forecast(scenario, ranks, seconds, busy, len(outcome.trials), outcome.stages)


class _Worker:
    """Answers as a worker would whose model behaves as the scenario says."""

    def __init__(self, job: TuningJob, inspection: m.Inspection, durations: Durations, scenario: Scenario) -> None:
        self._inspection = inspection
        self._durations = durations
        self._scenario = scenario
        self._sign = 1.0 if job.criterion.higher_is_better else -1.0
        self._group = {op.name: op.group for op in inspection.capability.ops}
        groups = list(dict.fromkeys(self._group.values()))
        self._sensitive = set(groups[::_SENSITIVE])
        self._metrics: Mapping[str, float] = dict.fromkeys(job.evaluation.names, _BASELINE)

    def answer(self, request: m.Request) -> tuple[m.ResultBody, float]:
        """The answer, and the seconds that it takes."""
        took, body = self._durations, request.body
        match body:
            case m.Inspect():
                return self._inspection, took.startup_s
            case m.Survey():
                return m.Surveyed(b""), took.baseline_s / body.shards
            case m.Baseline():
                return self._scored(_BASELINE), 0.0 if body.surveys else took.baseline_s
            case m.Calibrate():
                samples = len(range(body.shard, body.sampling_size, body.shards))
                seconds = took.calibrate_s * samples
                return m.Statistics(CalibrationStatistics().to_bytes(), samples, seconds), seconds
            case m.Judge():
                size = 1000 - len(body.config.quantized_ops)
                return self._scored(self._accuracy(body.config), size), took.trial_s(body.config)
            case m.MeasureLatency():
                share = len(body.config.quantized_ops) / max(1, len(body.config.ops))
                ratio = 1 - 0.5 * share
                return m.Latency(ratio, ratio, ratio, ratio, 1.0, 1, 1, 1, "simulated"), took.latency_s
            case m.MeasureFootprint():
                return m.Footprint(1, 1), took.latency_s
            case m.Diagnose():
                return m.ProbeAnswer({}), took.quantize_s + took.probe_s
            case m.Export():
                return m.Exported({"model": b""}, {}), took.quantize_s
            case m.Probe():
                scores = {group: float(group in self._sensitive) for group in body.ops or self._group.values()}
                batches = int(body.args.get("batches", 1)) / body.shards
                models = len(body.ops) if body.kind == "op_sensitivity" else 1
                return m.ProbeAnswer(scores), models * (took.quantize_s + batches * took.probe_s)

    def _accuracy(self, config: TuningConfig) -> float:
        if self._scenario == "never":
            return _BASELINE - self._sign * _LOST
        if self._scenario == "easy":
            return _BASELINE
        quantized = {self._group[name] for name in config.quantized_ops if name in self._group}
        hurt = len(quantized & self._sensitive)
        return _BASELINE - self._sign * _LOST * hurt / len(self._sensitive) if hurt else _BASELINE

    def _scored(self, value: float, size: int | None = None) -> m.Accuracy:
        return m.Accuracy(value, value, value, dict.fromkeys(self._metrics, value), 1, size_bytes=size)


__all__ = ["SCENARIOS", "Durations", "Forecast", "Scenario", "forecast"]
