"""Processor time of ranks that wait: eight of them must not heat a machine of two cores.

Starts ranks under ``mpirun`` that have nothing to do, and reads for how long the kernel let each of them run: the rank
itself (which polls for messages) and its child process. Prints a table; ``--json PATH`` writes it.

    python benchmarks/idle_ranks.py --ranks 8 --seconds 20
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from host import host

from distune.config.job import ModelSpec, TuningJob
from distune.distributed import mpi
from distune.distributed.launcher import find_mpirun, launcher_environment, mpirun_command
from distune.distributed.mpi import MpiTransport
from distune.distributed.topology import launched_by_mpi

GOAL = 5.0
"""Percent of a core that an idle rank may use."""


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="for how long they wait")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if launched_by_mpi():
        _rank(arguments.seconds)
        return
    before = host()
    launcher = find_mpirun()
    command = [sys.executable, __file__, "--seconds", str(arguments.seconds)]
    done = subprocess.run(
        mpirun_command(arguments.ranks, command, launcher),
        env=launcher_environment(os.environ),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    percent: list[list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{launcher.version}: {arguments.ranks} idle ranks on {psutil.cpu_count()} cores, {arguments.seconds:g} s")
    print(f"{'rank':>4} {'rank, % of a core':>18} {'child, % of a core':>19}")
    for rank, (own, child) in enumerate(percent):
        print(f"{rank:4} {own:18.2f} {child:19.2f}")
    worst = max(own + child for own, child in percent)
    print(f"worst {worst:.2f}%, goal {GOAL:g}%")
    if arguments.json:
        figures = {
            "benchmark": "idle_ranks",
            "host": before,
            "mpi": launcher.version,
            "seconds": arguments.seconds,
            "percent_of_a_core": [{"rank": own, "child": child} for own, child in percent],
            "worst": worst,
            "goal": GOAL,
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _rank(seconds: float) -> None:
    communicator = mpi.connect()
    if communicator.Get_rank():
        sys.exit(mpi.serve(communicator))
    with mpi.aborting_on_error(communicator):
        job = TuningJob(ModelSpec("none"))
        transport = MpiTransport(job, communicator, runner="idle_ranks:Idle")
        ranks = _ranks(psutil.Process(os.getppid()))
        _wait(transport, 5.0)  # until the children have been started
        before = [_used(rank) for rank in ranks]
        start = time.monotonic()
        _wait(transport, seconds)
        waited = time.monotonic() - start
        after = [_used(rank) for rank in ranks]
        percent = [
            [100 * (a - b) / waited for a, b in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)
        ]
        print(json.dumps(percent), flush=True)
        transport.close(0)


class Idle:
    """A runner that is never asked for anything."""

    def __init__(self, job: object, host: str, rank: int) -> None: ...

    def close(self) -> None:
        """Nothing is held."""


def _wait(transport: MpiTransport, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        transport.poll(min(left, 0.5))  # as the dispatcher does


def _ranks(launcher: psutil.Process) -> list[psutil.Process]:
    found = [p for p in launcher.children(recursive=True) if "OMPI_COMM_WORLD_RANK" in p.environ()]
    return sorted(found, key=lambda process: int(process.environ()["OMPI_COMM_WORLD_RANK"]))


def _used(rank: psutil.Process) -> tuple[float, float]:
    """Seconds of processor time of a rank and of its child."""
    times = [_seconds(process) for process in (rank, *rank.children())]
    return times[0], sum(times[1:])


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
