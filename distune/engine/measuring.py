"""Measures latency and footprint of trials, on workers whose neighbours hold still meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distune.config.job import TuningJob
from distune.engine import events
from distune.engine.book import TrialBook
from distune.engine.calibration import Calibrator
from distune.engine.dispatcher import Dispatcher, Outcome
from distune.engine.failures import reason_of
from distune.space.op_config import TuningConfig
from distune.strategies.stage import Trial
from distune.trial.messages import Footprint, Latency, MeasureFootprint, MeasureLatency


class Measuring:
    """See the module's description.

    Attributes:
        compile_s: Seconds of compiling for it.
    """

    def __init__(
        self,
        job: TuningJob,
        dispatcher: Dispatcher,
        calibrator: Calibrator,
        book: TrialBook,
        listener: events.Listener,
    ) -> None:
        self._objectives = {objective.name for objective in job.objectives}
        self._dispatcher = dispatcher
        self._calibrator = calibrator
        self._book = book
        self._listener = listener
        self.compile_s = 0.0

    def measure_all(self, trials: Sequence[Trial]) -> None:
        """Measure what the objectives need to know of trials of the book and is not known."""
        for trial in self._together(trials):
            self._book.update(trial)

    def measure_met(self) -> None:
        """Measure what the objectives need of the trials that meet, so that they can be compared.

        Not of one whose ops are all the same in another, or in floating point: a search for the shortest prefix met it
        on the way to a shorter one.
        """
        met = self._book.met
        passed = {trial.id for trial in met if any(_goes_further(other.config, trial.config) for other in met)}
        self.measure_all([trial for trial in met if trial.id not in passed])

    def measured(self, trial: Trial) -> Trial:
        """``trial`` with its latency, and its footprint where that is an objective."""
        outcome = self._dispatcher.wait([self._submit_latency(trial.config)])[0]
        measured = self._with_latency(trial, outcome)
        if "footprint" in self._objectives:
            outcome = self._dispatcher.wait([self._submit_footprint(trial.config)])[0]
            measured = self._with_footprint(measured, outcome)
        return measured

    def measure(self, trial: Trial) -> Trial:
        """``measured``, for a trial of the book, which is kept up to date."""
        measured = self.measured(trial)
        self._book.update(measured)
        return measured

    def _together(self, trials: Sequence[Trial]) -> list[Trial]:
        timed, weighed = "performance" in self._objectives, "footprint" in self._objectives
        open_latency = [trial for trial in trials if timed and trial.latency is None]
        open_footprint = [trial for trial in trials if weighed and trial.footprint_bytes is None]
        measured = {trial.id: trial for trial in trials}
        latency_ids = [self._submit_latency(trial.config) for trial in open_latency]
        footprint_ids = [self._submit_footprint(trial.config) for trial in open_footprint]
        for trial, outcome in zip(open_latency, self._dispatcher.wait(latency_ids), strict=True):
            measured[trial.id] = self._with_latency(measured[trial.id], outcome)
        for trial, outcome in zip(open_footprint, self._dispatcher.wait(footprint_ids), strict=True):
            measured[trial.id] = self._with_footprint(measured[trial.id], outcome)
        return list(measured.values())

    def _submit_latency(self, config: TuningConfig) -> int:
        body = MeasureLatency(config)
        self._calibrator.prepare(body, config)
        return self._dispatcher.submit(body, exclusive=True)

    def _submit_footprint(self, config: TuningConfig) -> int:
        body = MeasureFootprint(config)
        self._calibrator.prepare(body, config)
        return self._dispatcher.submit(body)

    def _with_latency(self, trial: Trial, outcome: Outcome) -> Trial:
        if not isinstance(outcome.body, Latency):
            self._not_measured("latency", trial, outcome)
            return trial
        self.compile_s += outcome.body.compile_s
        self._listener.on(events.LatencyMeasured(trial, outcome.body))
        return replace(trial, latency=outcome.body)

    def _with_footprint(self, trial: Trial, outcome: Outcome) -> Trial:
        body = outcome.body
        if not isinstance(body, Footprint):
            self._not_measured("footprint", trial, outcome)
            return trial
        return replace(
            trial,
            footprint_bytes=body.candidate_bytes,
            footprint_ratio=body.candidate_bytes / body.baseline_bytes,
        )

    def _not_measured(self, what: str, trial: Trial, outcome: Outcome) -> None:
        message = f"the {what} of trial {trial.id} could not be measured: {reason_of(outcome.body)}"
        self._listener.on(events.Warned(message, outcome.rank, outcome.host))


def _goes_further(config: TuningConfig, than: TuningConfig) -> bool:
    """Whether ``config`` is ``than`` with some of its ops in floating point quantized, and the same otherwise."""
    same = config.recipes == than.recipes and config.parameters == than.parameters
    if not same or than.sampling_size not in (0, config.sampling_size) or config.hash == than.hash:
        return False
    before = than.by_name
    return all(
        option == before[name] or (option.is_quantized and not before[name].is_quantized) for name, option in config.ops
    )


__all__ = ["Measuring"]
