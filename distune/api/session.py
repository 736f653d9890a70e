"""One run from the opening of the workspace to its files: what the command line and ``fit`` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distune.api.interruption import Interruption
from distune.config.job import TuningJob
from distune.distributed.rank0_line import launcher_terminal
from distune.distributed.transport import Transport
from distune.engine.events import Listeners, Warned
from distune.engine.outcome import RunOutcome
from distune.engine.tuner import Tuner
from distune.errors import DistuneError, UsageError, WorkspaceError
from distune.journal.workspace import Workspace
from distune.report.build import result_of
from distune.report.console import ConsoleListener
from distune.report.files import write_outcome, write_report
from distune.report.log import LogListener, log_level
from distune.report.tracking.base import TrackerListener, open_trackers

if TYPE_CHECKING:
    from distune.report.result import RunResult


def conduct(
    job: TuningJob,
    connect: Callable[[TuningJob, Workspace], Transport],
    interruption: Interruption,
    *,
    fresh: bool = False,
    quiet: bool = False,
    remarks: Iterable[str] = (),
) -> tuple[RunOutcome, RunResult]:
    """Tune, and leave ``result.json`` and the log behind whatever the ending.

    Args:
        job: What to tune, and in which workspace.
        connect: Opens the transport.
        interruption: Asks for an orderly end, also before there is a tuner.
        fresh: Start over where the workspace holds an older run.
        quiet: Show only warnings and the final table.
        remarks: What the user should know from the start.

    Raises:
        UsageError: Nothing was tuned; ``result.json`` says ``failed``, unless the workspace itself is at fault: then
            it holds another run's result.
    """
    level = log_level(os.environ)
    with (
        Workspace.open(Path(job.workspace), fresh=fresh) as workspace,
        LogListener(workspace.rank_log(0), level) as log,
    ):
        transport: Transport | None = None
        listener = Listeners((log,))
        trackers = TrackerListener(
            open_trackers(job.trackers), workspace.path, warn=lambda message: listener.on(Warned(message))
        )
        code = 1
        try:
            transport = connect(job, workspace)
            with ConsoleListener(quiet=quiet, terminal_size=launcher_terminal(os.environ)) as console:
                listener = Listeners((console, log))  # what is warned of goes to these
                for remark in (*workspace.warnings, *remarks, *transport.warnings):
                    listener.on(Warned(remark))
                tuner = Tuner(job, transport, workspace, Listeners((listener, trackers)))
                interruption.on_request(tuner.interrupt)
                outcome, result = _kept(tuner.run(), workspace)
                code = outcome.exit_code
                reported = True
                try:
                    write_report(workspace, job.diagnosis)
                except DistuneError as error:  # the run and its result stand without it
                    reported = False
                    listener.on(Warned(f"the report could not be written: {error}"))
                trackers.end(result)
                trackers.close()
            console.show(result, workspace.path, reported=reported)
        except Exception as error:
            log.failed(error)
            if isinstance(error, UsageError):
                code = 2
            if not isinstance(error, WorkspaceError):
                with suppress(WorkspaceError):  # the error itself is what the user has to hear of
                    write_outcome(_failed(job, transport, error), workspace)
            raise
        finally:
            trackers.close()
            if transport is not None:
                transport.close(code)
    return outcome, result


def _kept(outcome: RunOutcome, workspace: Workspace) -> tuple[RunOutcome, RunResult]:
    """Write the files of a run. Where the disk refuses, the run is interrupted: all that it found is in the journal."""
    try:
        return outcome, write_outcome(outcome, workspace)
    except WorkspaceError as error:
        outcome = replace(outcome, outcome="interrupted", failure=f"{error}", best=None, exported=None)
    with suppress(WorkspaceError):
        return outcome, write_outcome(outcome, workspace)
    return outcome, result_of(outcome)


def _failed(job: TuningJob, transport: Transport | None, error: Exception) -> RunOutcome:
    """The outcome of a run that ended by an error before it came to one."""
    workers = () if transport is None else tuple(transport.workers)
    return RunOutcome("failed", job, len(workers), workers, lost_ranks={}, failure=f"{error}" or type(error).__name__)
