"""Tune: find the fastest quantized model that keeps the accuracy."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from distune.cli import configuration, script

if TYPE_CHECKING:
    from distune.config.job import TuningJob
    from distune.distributed.transport import Transport
    from distune.engine.tuner import Tuner
    from distune.journal.workspace import Workspace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configuration, where the run's files go, and how it is shown."""
    configuration.add_arguments(parser)
    parser.add_argument("--workspace", metavar="DIR", help="folder of the run's files (default: ./distune_workspace)")
    parser.add_argument("--np", type=_ranks, metavar="N", help="start N ranks under mpirun")
    parser.add_argument("--fresh", action="store_true", help="start over; an older journal is kept aside")
    parser.add_argument("--json", action="store_true", help="print result.json to standard output at the end")
    parser.add_argument("--quiet", action="store_true", help="only warnings and the final table")
    script.add_arguments(parser)


def _ranks(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of ranks, at least 1, not {text!r}")
    return int(text)


def main(arguments: argparse.Namespace) -> int:
    """Run as what this process is: the launcher of ``--np``, a rank under MPI, or the only process."""
    if arguments.sigopt_file is not None:
        return script.main(arguments)
    from distune.distributed.topology import launched_by_mpi

    if launched_by_mpi():
        from distune.distributed.mpi import run_ranks

        return run_ranks(lambda connect: _master(arguments, connect))
    if arguments.np is not None:
        return _launch(arguments)

    def local(job: TuningJob, workspace: Workspace) -> Transport:
        from distune.distributed.local import LocalTransport

        return LocalTransport(job, log_dir=workspace.log)

    return _master(arguments, local)


def _launch(arguments: argparse.Namespace) -> int:
    """Check the configuration, so that its errors are told once and at once, then start the ranks."""
    from distune.distributed.launcher import exec_under_mpi

    configuration.read(arguments).job(arguments.workspace)
    argv = ["-m", "distune", *(word for word in sys.argv[1:])]
    return exec_under_mpi(arguments.np, [sys.executable, *_without_np(argv)])


def _without_np(argv: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word == "--np":
            skip = True
        elif not word.startswith("--np="):
            kept.append(word)
    return kept


def _master(arguments: argparse.Namespace, connect: Callable[[TuningJob, Workspace], Transport]) -> int:
    """The whole run as seen from rank 0."""
    from pathlib import Path

    from distune.engine.tuner import Tuner
    from distune.errors import UsageError
    from distune.journal.workspace import Workspace
    from distune.report.console import ConsoleListener
    from distune.report.files import write_outcome

    job = configuration.read(arguments).job(arguments.workspace)
    with Workspace.open(Path(job.workspace), fresh=arguments.fresh) as workspace:
        transport = connect(job, workspace)
        code = 1
        try:
            with ConsoleListener(quiet=arguments.quiet) as console:
                for warning in workspace.warnings:
                    print(f"distune: warning: {warning}", file=sys.stderr)
                tuner = Tuner(job, transport, workspace, console)
                with _interrupting(tuner):
                    outcome = tuner.run()
                result = write_outcome(outcome, workspace)
                code = outcome.exit_code
            console.show(result, workspace.path)
        except UsageError:
            code = 2
            raise
        finally:
            transport.close(code)
        if arguments.json:
            print(result.to_json())
    return code


@contextmanager
def _interrupting(tuner: Tuner) -> Iterator[None]:
    """Turn the signals that ask for an end into an orderly one; a second Ctrl-C ends at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tuner.interrupt(f"{signal.Signals(number).name} received")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
