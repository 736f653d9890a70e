"""Tune: find the fastest quantized model that keeps the accuracy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, TextIO

from distune.api.interruption import Interruption, interruptible
from distune.cli import configuration, script

if TYPE_CHECKING:
    from distune.config.job import TuningJob
    from distune.distributed.transport import Transport
    from distune.journal.workspace import Workspace

_STDOUT, _STDERR = 1, 2


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
    from distune.distributed.topology import launched_by_mpi

    ranks = launched_by_mpi()
    if arguments.np is not None and not ranks and arguments.sigopt_file is None:
        return _launch(arguments)
    with json_channel(arguments.json) as channel:
        if arguments.sigopt_file is not None:
            return script.main(arguments, channel)
        with interruptible(own_process=True) as interruption:
            return (_rank if ranks else _alone)(arguments, interruption, channel)


def _alone(arguments: argparse.Namespace, interruption: Interruption, channel: TextIO) -> int:
    """The only process."""

    def local(job: TuningJob, workspace: Workspace) -> Transport:
        from distune.distributed.chaos import Chaos
        from distune.distributed.local import LocalTransport

        return LocalTransport(job, log_dir=workspace.log, chaos=Chaos.of_job(job, os.environ))

    return _master(arguments, local, interruption, channel)


def _rank(arguments: argparse.Namespace, interruption: Interruption, channel: TextIO) -> int:
    """One of the ranks that ``mpirun`` or ``--np`` has started."""
    from distune.distributed.mpi import leave_signals_to_rank_0, run_ranks
    from distune.distributed.rank0_line import RankEnd
    from distune.distributed.topology import launched_rank
    from distune.errors import DistuneError, UsageError

    if launched_rank():
        leave_signals_to_rank_0()
        return run_ranks(lambda connect: 0)
    line = RankEnd(os.environ)
    line.listening()
    if arguments.np is not None:
        print(f"distune: warning: --np {arguments.np} has no effect under mpirun, which says how many", file=sys.stderr)

    def master(connect: Callable[[TuningJob, Workspace], Transport]) -> int:
        try:
            code = _master(arguments, connect, interruption, channel)
        except DistuneError as error:
            line.exit(2 if isinstance(error, UsageError) else 1)
            raise
        line.exit(code)
        return code

    return run_ranks(master)


def _launch(arguments: argparse.Namespace) -> int:
    """Check the configuration, so that its errors are told once and at once, then start the ranks."""
    from distune.distributed.launcher import exec_under_mpi

    def check() -> None:
        from distune.distributed.chaos import Chaos
        from distune.report.log import log_level

        log_level(os.environ)
        Chaos.of_job(configuration.read(arguments).job(arguments.workspace), os.environ)

    argv = ["-m", "distune", *(word for word in sys.argv[1:])]
    return exec_under_mpi(arguments.np, [sys.executable, *_without_np(argv)], check)


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


def _master(
    arguments: argparse.Namespace,
    connect: Callable[[TuningJob, Workspace], Transport],
    interruption: Interruption,
    channel: TextIO,
) -> int:
    """The whole run as seen from rank 0."""
    from distune.api.session import conduct

    job = configuration.read(arguments).job(arguments.workspace)
    outcome, result = conduct(job, connect, interruption, fresh=arguments.fresh, quiet=arguments.quiet)
    if arguments.json:
        channel.write(result.to_json())
        channel.flush()
    return outcome.exit_code


@contextmanager
def json_channel(apart: bool) -> Iterator[TextIO]:
    """Standard output; with ``apart`` for what is written to this channel alone.

    Whatever else is written to standard output then, by user code, native code or programs that it starts, goes to
    standard error: who reads the output wants JSON and nothing else.
    """
    if not apart:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with redirect_stdout(sys.stderr), open(kept, "w", encoding="utf-8", closefd=False) as channel:
            yield channel
    finally:
        os.dup2(kept, _STDOUT)
        os.close(kept)
