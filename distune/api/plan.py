"""What a run would do, told before it: the tuning space, the stages, and how long they may take on how many ranks.

The model is loaded and run for a short time on this machine; the rest is the simulator's (``engine.forecast``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from distune.config.job import DataloaderSpec, TuningJob
from distune.engine.forecast import SCENARIOS, Durations, Forecast, forecast
from distune.errors import DistuneError, UsageError
from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace, build_space
from distune.trial import messages as m
from distune.trial.runner import Runner

_BATCHES = 3
"""Batches that are timed; the whole set is as much longer as it has more of them."""

_Body = TypeVar("_Body")


@dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        durations: Measured here, with one thread a rank.
        forecasts: By scenario, then by number of ranks.
        remarks: What the forecast rests on, where that is not plain.
    """

    inspection: m.Inspection
    space: TuningSpace
    durations: Durations
    forecasts: tuple[Forecast, ...]
    remarks: tuple[str, ...]


def plan(job: TuningJob, ranks: Sequence[int]) -> Plan:
    """Look at the model and the data of ``job``, time them shortly, and simulate its run.

    Raises:
        UsageError: The model, the data or the user's code are at fault.
    """
    timing = _Timing(job)
    try:
        durations = timing.durations()
    finally:
        timing.close()
    judged = job.evaluation.can_judge and not job.exit_policy.performance_only
    forecasts = [
        forecast(job, timing.inspection, durations, scenario, count)
        for scenario in (SCENARIOS if judged else SCENARIOS[:1])
        for count in ranks
    ]
    return Plan(timing.inspection, _space(job, timing.inspection), durations, tuple(forecasts), tuple(timing.remarks))


class _Timing:
    """Runs the first batches of a job's data, as a worker would."""

    def __init__(self, job: TuningJob) -> None:
        self._job = job
        self._short = _shortened(job)
        self._runner = Runner(self._short, "", 0)
        self.remarks: list[str] = []
        started = self._ask(m.Inspect())
        self.inspection = _of(started, m.Inspection)
        self._startup_s = _seconds(started)
        self._samples = self._complete()

    def close(self) -> None:
        """Free the model and the data."""
        self._runner.close()

    def durations(self) -> Durations:
        """Seconds of each piece of work on the complete data."""
        config = _space(self._short, self.inspection).default()
        calibrate_s = self._calibrate(config) if config.sampling_size else 0.0
        if not self._job.evaluation.can_judge or self._job.exit_policy.performance_only:
            latency_s = _seconds(self._ask(m.MeasureLatency(config)))
            return Durations(self._startup_s, 0.0, calibrate_s, 0.0, 0.0, latency_s, 0.0)
        fp32 = _of(self._ask(m.Baseline()), m.Accuracy)
        judged = self._ask(m.Judge(config)).body
        if isinstance(judged, m.Accuracy):
            quantize_s, timed = judged.quantize_s, judged
            latency_s = _seconds(self._ask(m.MeasureLatency(config)))
        else:
            self.remarks.append(f"the default config could not be judged ({_message(judged)}): timed with fp32")
            quantize_s, timed, latency_s = 0.0, fp32, 0.0
        evaluate_s = self._whole(timed)
        batches = max(1.0, self._samples / _batch_size(self._job)) if self._samples else 1.0
        return Durations(
            startup_s=self._startup_s,
            baseline_s=self._whole(fp32),
            calibrate_s=calibrate_s,
            quantize_s=quantize_s,
            evaluate_s=evaluate_s,
            latency_s=latency_s,
            probe_s=evaluate_s / batches,
        )

    def _calibrate(self, config: TuningConfig) -> float:
        """Calibrate for ``config``; seconds a sample."""
        seconds, samples = 0.0, 0
        variant = _space(self._short, self.inspection).variant(config)
        for each in dict.fromkeys(((), variant)):
            found = _of(self._ask(m.Calibrate(config.sampling_size, 0, 1, each, config.needs_histograms)), m.Statistics)
            self._runner.receive(m.LoadStatistics(each, config.sampling_size, found.blob))
            seconds, samples = seconds + found.seconds, max(samples, found.samples)
        return seconds / max(1, samples)

    def _whole(self, timed: m.Accuracy) -> float:
        """Seconds of a complete evaluation, from one of the first batches."""
        if not self._samples or not timed.samples:
            return timed.evaluate_s
        return timed.evaluate_s * self._samples / timed.samples

    def _complete(self) -> int:
        """Samples of a complete evaluation; 0 where nobody knows."""
        spec = self._job.evaluation
        samples = int(self.inspection.data.get("samples") or 0)
        if spec.eval_func is None and spec.can_judge and not samples:
            self.remarks.append("the evaluation data do not tell how many they are: only their first batches count")
        return min(samples, spec.iteration * _batch_size(self._job)) if spec.iteration >= 0 else samples

    def _ask(self, body: m.RequestBody) -> m.Result:
        return self._runner.answer(m.Request(1, body))


def _shortened(job: TuningJob) -> TuningJob:
    """The job with the first batches of its data only. An ``eval_func`` brings its own, and runs in full."""
    iteration = job.evaluation.iteration
    loader = job.calibration.dataloader
    batch = loader.batch_size if isinstance(loader, DataloaderSpec) else 1
    size = min(min(job.calibration.sampling_sizes, default=batch), _BATCHES * batch)
    return replace(
        job,
        evaluation=replace(job.evaluation, iteration=_BATCHES if iteration < 0 else min(_BATCHES, iteration)),
        calibration=replace(job.calibration, sampling_sizes=(size,)),
        workspace=tempfile.gettempdir(),
    )


def _space(job: TuningJob, inspection: m.Inspection) -> TuningSpace:
    sizes = job.calibration.sampling_sizes
    return build_space(inspection.capability, job.constraints, job.approach, job.recipes, sizes)


def _batch_size(job: TuningJob) -> int:
    loader = job.evaluation.dataloader
    return loader.batch_size if isinstance(loader, DataloaderSpec) else 1


def _seconds(result: m.Result) -> float:
    return result.end_s - result.start_s


def _of(result: m.Result, kind: type[_Body]) -> _Body:
    body = result.body
    if isinstance(body, kind):
        return body
    if isinstance(body, m.Failure):
        text = body.message + (f"\n{body.detail}" if body.detail else "")
        raise UsageError(text) if body.usage else DistuneError(text)
    raise DistuneError(f"expected {kind.__name__}, got {type(body).__name__}")


def _message(body: m.ResultBody) -> str:
    return body.message if isinstance(body, m.Failure) else type(body).__name__


__all__ = ["Plan", "plan"]
