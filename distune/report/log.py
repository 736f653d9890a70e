"""The run as lines with a time in ``log/rank-0.log``, through Python's ``logging``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from distune.engine import events
from distune.errors import DistuneError, UsageError
from distune.journal.files import workspace_error
from distune.report import words

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def log_level(environment: Mapping[str, str]) -> int:
    """The level that ``DISTUNE_LOGLEVEL``, else ``LOGLEVEL`` asks for; INFO where neither is set.

    Raises:
        UsageError: It is none of ``LEVELS``.
    """
    for variable in ("DISTUNE_LOGLEVEL", "LOGLEVEL"):
        if text := environment.get(variable, ""):
            if text.upper() not in LEVELS:
                raise UsageError(f"{variable}={text}: expected one of {', '.join(LEVELS)}")
            return int(getattr(logging, text.upper()))
    return logging.INFO


class _LogFile(logging.FileHandler):
    """A log that a full disk does not take is given up: the journal beside it meets the same and ends the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class LogListener(events.Listener):
    """Logs every event of a run. Use as a context manager, so that the file is closed.

    Records go to the logger ``distune``, so that a program that tunes from Python sees them in its own log too.

    Args:
        path: Appended to; what trials of this rank print is there as well.
        level: Lines below it are left out.

    Raises:
        WorkspaceError: The file cannot be opened.
    """

    def __init__(self, path: Path, level: int = logging.INFO) -> None:
        self._logger = logging.getLogger("distune")
        try:
            self._handler = _LogFile(path, mode="a", encoding="utf-8")
        except OSError as error:
            raise workspace_error("write", path, error) from error
        self._handler.setFormatter(logging.Formatter(_FORMAT))
        self._before = self._logger.level
        self._logger.addHandler(self._handler)
        self._logger.setLevel(level)

    def __enter__(self) -> LogListener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._before)
        with suppress(OSError):  # see _LogFile
            self._handler.close()

    def failed(self, error: Exception) -> None:
        """The run ended by ``error``; with the traceback where that is a defect of distune."""
        defect = None if isinstance(error, DistuneError) else error
        self._logger.error("failed: %s", error or type(error).__name__, exc_info=defect)

    def on(self, event: events.RunEvent) -> None:
        """Log ``event``."""
        match event:
            case events.RunStarted():
                self._logger.info("%s", words.headline(event))
                for worker in event.workers:
                    self._logger.debug("rank %d on %s: %s", worker.rank, worker.host, worker.cpu)
            case events.SpaceBuilt():
                self._logger.info("%s", words.space_sentence(event))
                for op in event.space.ops:
                    self._logger.debug("op %s (%s): %d options", op.name, op.op_type, len(op.options))
            case events.BaselineKnown():
                self._logger.info("%s", words.baseline_sentence(event))
            case events.CalibrationStarted():
                self._logger.debug("calibrating with %d samples", event.samples)
            case events.CalibrationDone():
                self._logger.info("calibrated with %d samples in %s", event.samples, words.duration(event.seconds))
            case events.StageStarted():
                total = "unknown" if event.total is None else event.total
                self._logger.info("stage %s begins: candidates %s, trials left %d", event.name, total, event.remaining)
            case events.TrialDecided():
                self._decided(event)
            case events.LatencyMeasured():
                self._logger.info("%s", words.latency_sentence(event))
            case events.StageEnded():
                met = "none met" if event.met is None else f"trial {event.met.id} met"
                took = words.duration(event.seconds)
                self._logger.info("stage %s ends: trials %d in %s, %s", event.name, event.judged, took, met)
            case events.WorkersBusy():
                self._logger.debug("%s; %d results", words.activity(event), event.done)
            case events.Warned():
                where = words.origin(event)
                self._logger.warning("%s%s", f"{where}: " if where else "", event.message)
            case events.RunEnded():
                why = f": {event.outcome.failure}" if event.outcome.failure else ""
                self._logger.info("%s%s", event.outcome.outcome, why)

    def _decided(self, event: events.TrialDecided) -> None:
        trial = event.trial
        level = logging.WARNING if trial.verdict == "failed" else logging.INFO
        where = f" on rank {trial.rank}" if trial.rank is not None else ""
        known = "known already: " if event.again else ""
        verdict = "" if trial.verdict == "failed" else f", {trial.verdict.replace('_', ' ')}"
        label = f" ({trial.label})" if trial.label else ""
        self._logger.log(
            level, "trial %d%s%s: %s%s%s", trial.id, label, where, known, words.trial_sentence(trial), verdict
        )
        self._logger.debug("trial %d: config %s, metrics %s", trial.id, trial.config.hash, dict(trial.metrics))
