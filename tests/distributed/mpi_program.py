"""A program for the tests: ``mpirun -np N python -m tests.distributed.mpi_program CASE``. Rank 0 prints JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

from distune.config.job import ModelSpec, TuningJob
from distune.distributed import mpi
from distune.distributed.mpi import MpiTransport
from distune.distributed.mpi_link import _PIECE, MpiLink
from distune.distributed.rank0_line import RankEnd
from distune.distributed.topology import launched_rank
from distune.distributed.transport import ResultArrived, WorkerLost
from distune.errors import UsageError
from distune.trial.messages import Failure, LoadStatistics, ProbeAnswer
from tests.distributed.runners import ask

RUNNER = "tests.distributed.runners:ScriptedRunner"


def answers(transport: MpiTransport, count: int) -> list[Any]:
    """``count`` events, as plain values."""
    found: list[Any] = []
    end = time.monotonic() + 60
    while len(found) < count and time.monotonic() < end:
        for event in transport.poll(1.0):
            if isinstance(event, WorkerLost):
                found.append({"lost": event.rank})
            elif isinstance(event, ResultArrived):
                body = event.result.body
                known = {"id": event.result.request_id, "rank": event.result.rank}
                if isinstance(body, Failure):
                    known |= {"failure": body.kind, "message": body.message, "detail": body.detail}
                elif isinstance(body, ProbeAnswer):
                    known |= {"data": {k: len(v) if isinstance(v, bytes) else v for k, v in body.data.items()}}
                found.append(known)
    return found


def echo(transport: MpiTransport) -> Any:
    """Every rank answers."""
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "echo"))
    found = answers(transport, len(transport.workers))
    return {"answers": found, "hosts": [[w.rank, w.host, w.local_rank] for w in transport.workers]}


def crash(transport: MpiTransport) -> Any:
    """The children of all ranks die, and the ranks go on with what they had been told."""
    for worker in transport.workers:
        transport.send(worker.rank, LoadStatistics((), 100, b"x" * 3_000_000))
        transport.send(worker.rank, ask(worker.rank, "exit" if worker.rank % 2 else "segfault"))
        transport.send(worker.rank, ask(10 + worker.rank, "echo"))
    return answers(transport, 2 * len(transport.workers))


def model(transport: MpiTransport) -> Any:
    """What every rank finds under the job's model path."""
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "job"))
    return answers(transport, len(transport.workers))


def blob(transport: MpiTransport) -> Any:
    """A large answer from a rank."""
    transport.send(1, ask(1, "blob", size=120_000_000))
    return answers(transport, 1)


def kill(transport: MpiTransport) -> Any:
    """A rank is killed in mid-request; its neighbour goes on."""
    transport.send(1, ask(1, "parent"))
    (found,) = answers(transport, 1)
    transport.send(1, ask(2, "hang"))
    os.kill(found["data"]["parent"], signal.SIGKILL)
    lost = answers(transport, 1)
    transport.send(2, ask(3, "echo"))
    return [lost, answers(transport, 1), [worker.rank for worker in transport.workers]]


def orphan(transport: MpiTransport) -> Any:
    """The rank that received a node's files is killed; its neighbour's next child finds them all the same."""
    transport.send(1, ask(1, "parent"))
    transport.send(2, ask(2, "job"))
    found = {known["id"]: known["data"] for known in answers(transport, 2)}
    os.kill(found[1]["parent"], signal.SIGKILL)
    lost = answers(transport, 1)
    transport.send(2, ask(3, "exit"))
    transport.send(2, ask(4, "job"))
    return [lost, answers(transport, 2)]


def silent(transport: MpiTransport) -> Any:
    """A rank stands still, is given up and comes back with its answer; its neighbour goes on."""
    transport.send(1, ask(1, "parent"))
    (found,) = answers(transport, 1)
    os.kill(found["data"]["parent"], signal.SIGSTOP)
    transport.send(1, ask(2, "echo"))
    lost = answers(transport, 1)
    os.kill(found["data"]["parent"], signal.SIGCONT)
    transport.send(2, ask(3, "echo"))
    late = sorted(known["id"] for known in answers(transport, 2))
    return [lost, late, [worker.rank for worker in transport.workers]]


def halted(transport: MpiTransport) -> Any:
    """A rank stands still in the middle of a long answer, is given up and goes on; its neighbour is heard meanwhile."""
    transport.send(1, ask(1, "parent"))
    (found,) = answers(transport, 1)
    transport.send(1, ask(2, "blob", size=300_000_000))
    while not transport._link._incoming:  # its length is there, and not all of it
        if transport.poll(0):  # it came in one go
            transport.send(1, ask(2, "blob", size=300_000_000))
    os.kill(found["data"]["parent"], signal.SIGSTOP)
    heard = []
    for number in (3, 4, 5):
        transport.send(2, ask(number, "echo"))
        heard += answers(transport, 1)
    lost = answers(transport, 1)
    os.kill(found["data"]["parent"], signal.SIGCONT)
    late = answers(transport, 1)
    return {"heard": [known.get("id") for known in heard], "lost": lost, "late": [known.get("data") for known in late]}


def idle(transport: MpiTransport) -> Any:
    """Seconds of processor time that the ranks use while nothing happens for three seconds."""
    echo(transport)
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "parent_cpu"))
    before = {known["rank"]: known["data"]["seconds"] for known in answers(transport, len(transport.workers))}
    transport.poll(3.0)
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "parent_cpu"))
    after = {known["rank"]: known["data"]["seconds"] for known in answers(transport, len(transport.workers))}
    return [after[rank] - before[rank] for rank in sorted(after)]


def conformance(transport: MpiTransport) -> Any:
    """All promises of ``test_transport_conformance``."""
    from tests.distributed.test_transport_conformance import check

    check(transport)
    return "kept"


def environment(transport: MpiTransport) -> Any:
    """Variables that the children see."""
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "environment"))
    return [sorted(known["data"]["environ"]) for known in answers(transport, len(transport.workers))]


def placed(transport: MpiTransport) -> Any:
    """Cores and threads that the children find."""
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "placed"))
    found = sorted(answers(transport, len(transport.workers)), key=lambda known: known["rank"])
    cores = [[known["data"]["cores"], known["data"]["threads"]] for known in found]
    return {"placed": cores, "warnings": list(transport.warnings)}


def interrupted(transport: MpiTransport) -> Any:
    """Waits for a signal on rank 0, as a run does in mid-trial."""
    seen: list[int] = []
    for asking in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(asking, lambda number, frame: seen.append(number))
    LINE.listening()
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "hang"))
    print("waiting", flush=True)
    end = time.monotonic() + 60
    while not seen and time.monotonic() < end:
        transport.poll(0.2)
    return "orderly"


def kill_master(transport: MpiTransport) -> Any:
    """Rank 0 is killed in mid-request; it has printed the ids of the children."""
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "echo"))
    print(json.dumps([known["data"]["pid"] for known in answers(transport, len(transport.workers))]), flush=True)
    for worker in transport.workers:
        transport.send(worker.rank, ask(worker.rank, "hang"))
    os.kill(os.getpid(), signal.SIGKILL)


LINE = RankEnd(os.environ)

CASES: dict[str, Callable[[MpiTransport], Any]] = {
    case.__name__: case
    for case in (
        echo,
        crash,
        model,
        blob,
        kill,
        orphan,
        silent,
        halted,
        kill_master,
        idle,
        conformance,
        environment,
        placed,
        interrupted,
    )
}


def main(case: str, path: str, isolation: Any, exit_code: int) -> int:
    if case == "no-start" and os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "1":
        raise ImportError("planted before MPI_Init")
    if case == "no-start":
        mpi.connect(patience_s=3.0)
    if case == "stuck":
        return mpi.run_ranks(lambda connect: stuck(connect, exit_code), runner=RUNNER)
    communicator = mpi.connect()
    rank = communicator.Get_rank()
    if case == "raise-on-1" and rank == 1:
        with mpi.aborting_on_error(communicator):
            raise RuntimeError("planted on rank 1")
    if case == "last-words":
        last_words(communicator)
    if case == "cut-short":
        cut_short(communicator)
    hosts = os.environ.get("TEST_HOSTS", "").split(",")
    if len(hosts) > 1:
        os.environ["DISTUNE_HOSTNAME"] = hosts[rank]
    if rank:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return mpi.serve(communicator)
    # What is named under /proc/self/cwd then exists for rank 0 and its child alone.
    os.chdir(os.environ.get("TEST_FOLDER_OF_RANK_0", "."))
    with mpi.aborting_on_error(communicator):
        if case == "dismiss":
            mpi.dismiss(communicator, exit_code)
            return exit_code
        job = TuningJob(ModelSpec("none", path), isolation=isolation)
        try:
            transport = MpiTransport(
                job, communicator, runner=RUNNER, silence_s=6.0 if case in ("silent", "halted") else mpi.SILENCE_S
            )
        except UsageError as error:
            print(json.dumps(str(error)))
            mpi.dismiss(communicator, exit_code)
            return exit_code
        print(json.dumps(CASES[case](transport)), flush=True)
        transport.close(exit_code)
        return exit_code


def last_words(communicator: Any) -> NoReturn:
    """Every rank but 0 says something and ends at once; rank 0 prints of how many it has heard or knows they ended."""
    link = MpiLink(communicator)
    if link.rank:
        time.sleep(0.3)
        link.send(0, b"x" * 60_000)
        os._exit(0)
    heard: set[int] = set()
    while len(heard | link.lost) < link.size - 1:
        heard.update(source for source, _ in link.receive())
    print(json.dumps({"ended": sorted(heard | link.lost)}), flush=True)
    os._exit(0)


def cut_short(communicator: Any) -> NoReturn:
    """Rank 1 ends in the middle of a long object whose short end is on its way; rank 0 prints what it heard of all."""
    link = MpiLink(communicator)
    if link.rank:
        while not link.receive():
            pass
        link.send(0, bytes(_PIECE + 100) if link.rank == 1 else "whole")
        if link.rank == 2:
            link.drain(10.0)
        os._exit(0)
    heard: list[Any] = []
    for rank in (1, 2):
        link.send(rank, "begin")
        while rank not in link.lost:
            heard += link.receive()
    heard += link.receive()
    print(json.dumps(heard), flush=True)
    os._exit(0)


def stuck(connect: Any, exit_code: int) -> int:
    """Rank 1 works in the rank itself and never ends."""
    transport = connect(TuningJob(ModelSpec("none"), isolation="none"), SimpleNamespace(log=None))
    transport.send(1, ask(1, "hang"))
    transport.send(0, ask(2, "echo"))
    print(json.dumps(answers(transport, 1)), flush=True)
    return exit_code


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    if launched_rank() == 0:
        LINE.exit(code)
    sys.exit(code)
