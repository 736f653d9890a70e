"""What a tracker implements, and how one that fails does not take the run along.

A tracker of one's own is a class with some of the methods of ``Tracker``, named in the configuration::

    tuning:
      trackers:
        my_tracker.py:MyTracker: {project: quantization}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distune.config.imports import import_object
from distune.config.job import ComponentSpec, TuningJob
from distune.data.user_code import user_traceback
from distune.engine import events
from distune.engine.events import Listener, RunEvent
from distune.errors import DistuneError, UsageError
from distune.report.result import RunResult
from distune.strategies.stage import Trial

TRACKERS: Mapping[str, str] = {
    "tensorboard": "distune.report.tracking.tensorboard:TensorBoardTracker",
    "mlflow": "distune.report.tracking.mlflow:MlflowTracker",
}
"""Trackers of the package, by the name that a configuration gives them."""


class Tracker:
    """Follows one run. Every method is optional, is called on rank 0 in the thread of the run, and must return soon.

    A run that is resumed tells everything again from the beginning.
    """

    def on_start(self, job: TuningJob, workspace: Path) -> None:
        """The run begins; nothing is loaded yet."""

    def on_baseline(self, accuracy: float, target: float) -> None:
        """The fp32 model was scored; ``target`` is the accuracy that meets the criterion."""

    def on_trial(self, trial: Trial) -> None:
        """A tuning config was judged. Configs that were judged before are not told again."""

    def on_latency(self, trial: Trial, ratio: float, ci_low: float, ci_high: float) -> None:
        """A trial's latency was measured, as a ratio to fp32's with its 95% confidence interval."""

    def on_diagnosis(self, trial: Trial, ops: Mapping[str, Mapping[str, Any]]) -> None:
        """Tensors of ``trial`` were compared with fp32's: ``{op: {"activation": ..., "weight": ...}}``, each in the
        form of ``distune.backends.diagnosis.TensorComparison.result``."""

    def on_end(self, result: RunResult, workspace: Path) -> None:
        """The run is over and its files are written."""

    def close(self) -> None:
        """Free what is held; called once, also where the run failed."""


class TrackerListener(Listener):
    """Tells trackers what happens. One that raises is warned of, and is told nothing more.

    Args:
        warn: Told of a tracker that raised.
    """

    def __init__(self, trackers: Sequence[tuple[str, Tracker]], workspace: Path, warn: Callable[[str], None]) -> None:
        self._trackers = list(trackers)
        self._workspace = workspace
        self._warn = warn

    def on(self, event: RunEvent) -> None:
        match event:
            case events.RunStarted():
                self._tell(lambda tracker: tracker.on_start(event.job, self._workspace))
            case events.BaselineKnown():
                self._tell(lambda tracker: tracker.on_baseline(event.accuracy, event.target))
            case events.TrialDecided(again=False):
                self._tell(lambda tracker: tracker.on_trial(event.trial))
            case events.LatencyMeasured():
                found = event.latency
                self._tell(lambda tracker: tracker.on_latency(event.trial, found.ratio, found.ci_low, found.ci_high))
            case events.Diagnosed():
                self._tell(lambda tracker: tracker.on_diagnosis(event.trial, event.ops))

    def end(self, result: RunResult) -> None:
        """The run's files are written."""
        self._tell(lambda tracker: tracker.on_end(result, self._workspace))

    def close(self) -> None:
        """Close the trackers; may be called twice."""
        self._tell(lambda tracker: tracker.close())
        self._trackers = []

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for entry in list(self._trackers):
            name, tracker = entry
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(entry)
                shown = str(error) if isinstance(error, DistuneError) else user_traceback(error)
                self._warn(f"the tracker {name} failed and is told nothing more: {shown}")


def trackers() -> dict[str, frozenset[str]]:
    """Arguments of each tracker of the package, by name."""
    return {
        name: frozenset(inspect.signature(import_object(target, name)).parameters) for name, target in TRACKERS.items()
    }


def open_trackers(specs: Sequence[ComponentSpec]) -> list[tuple[str, Tracker]]:
    """Make the trackers of a job, before anything runs.

    Raises:
        UsageError: A tracker is unknown, is no tracker, or refuses its arguments.
        MissingExtraError: The tool is not installed.
    """
    opened = []
    for spec in specs:
        made = import_object(TRACKERS.get(spec.name, spec.name), "tuning.trackers")
        if not isinstance(made, type) or not any(hasattr(made, name) for name in _HOOKS):
            raise UsageError(
                f"tuning.trackers: {spec.name} is not a class with a method of Tracker: {', '.join(_HOOKS)}"
            )
        tracker = made if issubclass(made, Tracker) else type(made.__name__, (made, Tracker), {})
        try:
            opened.append((spec.name, tracker(**spec.args)))
        except TypeError as error:
            raise UsageError(f"tuning.trackers: {spec.name} refuses its arguments: {error}") from error
    return opened


_HOOKS = tuple(name for name in vars(Tracker) if name.startswith("on_"))

__all__ = ["TRACKERS", "Tracker", "TrackerListener", "open_trackers", "trackers"]
