"""Master and workers as ranks of one MPI job (``mpirun -np N``).

Rank 0 is the master and hosts a worker itself; the other ranks are agents (``agent``). Files that the job names travel
once to each node that lacks them, then the job to every rank.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distune.config.job import TuningJob
from distune.distributed import mpi_protocol as p
from distune.distributed.agent import Agent, versions
from distune.distributed.chaos import Chaos
from distune.distributed.child import ChildWorker
from distune.distributed.files import file_entry, files_of, folders_of, read_chunks
from distune.distributed.limits import memory_limits
from distune.distributed.mpi_link import Backoff, MpiLink, end_job, import_mpi, survives_losses
from distune.distributed.output import OutputLog
from distune.distributed.placement import place, settle
from distune.distributed.runner_host import DEFAULT_RUNNER
from distune.distributed.topology import host_name, launched_rank, worker_info
from distune.distributed.transport import Event, ResultArrived, Transport, WorkerInfo, WorkerLost
from distune.distributed.worker import InlineWorker, Worker, pack_job, wait_for
from distune.errors import DistuneError, TransportError, UsageError, WorkspaceError
from distune.trial.messages import Broadcast, Request

if TYPE_CHECKING:
    from distune.journal.workspace import Workspace

_LAUNCHER_LOOK_S = 2.0
"""How often a rank looks whether its launcher is still there."""

_GRACE_S = 8.0
"""How long ``close`` waits for the other ranks."""

_PATIENCE_S = 180.0

SILENCE_S = 60.0

_LOOK_S = 1.0
"""How often rank 0 looks who has been silent for too long."""

_HELD_UP_S = 20.0
"""Longer than the master ever stays away from its mail, but for being stopped itself."""


def connect(patience_s: float = _PATIENCE_S) -> Any:
    """A communicator of all ranks that belongs to distune alone. Collective: every rank calls it once.

    Args:
        patience_s: A rank that cannot even start (mpi4py missing on its node, say) leaves the others waiting in
            ``MPI_Init`` where the launcher tolerates losses (ULFM). After so many seconds they print where they are
            and exit with 1.

    Raises:
        MissingExtraError: mpi4py is not installed.
    """
    # MPI_Init holds Python's lock, so only a watchdog outside the interpreter can end the wait.
    faulthandler.dump_traceback_later(patience_s, exit=True)
    try:
        return import_mpi().COMM_WORLD.Dup()
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_ranks(
    master: Callable[[Callable[[TuningJob, Workspace], Transport]], int], *, runner: str = DEFAULT_RUNNER
) -> int:
    """Be what this rank is: the master on rank 0, an agent elsewhere; returns the exit code, the same on all ranks.

    USR1 and TERM, which launchers and Slurm hand to every rank, are for rank 0 alone, whose caller handles them: agents
    end when rank 0 tells them to, or when rank 0 or their launcher has gone. A rank that does not end when told
    (``isolation: none``, in mid-trial) is ended by aborting the job with that exit code, as the last thing of all.

    Args:
        master: The whole run as rank 0 sees it. Gets a function that opens the transport, and returns the exit code.
            What it closes itself must be closed with the code that it returns.
        runner: Dotted name of the runner's class.

    Raises:
        DistuneError: ``master`` raised it; the other ranks have been sent home.
    """
    leave_signals_to_rank_0()
    communicator = connect()
    if communicator.Get_rank():
        return serve(communicator)
    opened: list[MpiTransport] = []

    def open_transport(job: TuningJob, workspace: Workspace) -> Transport:
        chaos = Chaos.of_job(job, os.environ)
        opened.append(MpiTransport(job, communicator, runner=runner, log_dir=workspace.log, chaos=chaos))
        return opened[0]

    def send_home(exit_code: int) -> bool:
        if not opened:
            return dismiss(communicator, exit_code)
        opened[0].close(exit_code)
        return not opened[0].stuck

    with aborting_on_error(communicator):
        try:
            exit_code = master(open_transport)
        except DistuneError as error:
            send_home(2 if isinstance(error, UsageError) else 1)
            failure: DistuneError | None = error
            gone = True  # the caller still has to say what the error was
        else:
            gone = send_home(exit_code)
            failure = None
    if failure is not None:
        raise failure
    if not gone:
        sys.stdout.flush()
        communicator.Abort(exit_code)
    return exit_code


def leave_signals_to_rank_0() -> None:
    """On the ranks above 0: ignore USR1 and TERM. A rank's process calls this as early as it can."""
    if launched_rank() and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def serve(communicator: Any) -> int:
    """Be the agent of a rank above 0 until rank 0 says that it is over; returns the exit code that it decided.

    Args:
        communicator: From ``connect``.
    """
    with aborting_on_error(communicator), _ending_with_the_launcher():
        return Agent(communicator).run()


@contextmanager
def _ending_with_the_launcher() -> Iterator[None]:
    """End this rank when its launcher has gone, also while a user's function keeps it busy (``isolation: none``).

    With fault tolerance Open MPI's ``Abort`` takes the calling rank alone, and the launcher leaves the others behind.
    """
    launcher, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(_LAUNCHER_LOOK_S):
            if os.getppid() != launcher:
                os._exit(1)

    threading.Thread(target=watch, name="distune-launcher-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def dismiss(communicator: Any, exit_code: int) -> bool:
    """On rank 0: send the other ranks home before there was any transport, e.g. because the configuration is wrong.

    Returns:
        Whether all have gone.
    """
    link = MpiLink(communicator)
    for rank in range(1, link.size):
        link.send(rank, p.Leave(exit_code))
    return not _see_off(link, set(range(1, link.size)), lambda source, message: None)


@contextmanager
def aborting_on_error(communicator: Any) -> Iterator[None]:
    """An unhandled exception ends the whole job, with its traceback, rank and host.

    Without this the rank would wait in ``MPI_Finalize`` for the others, and they for it, for ever. ``SystemExit``
    and ``KeyboardInterrupt`` count as well: a rank that leaves alone hangs the rest just the same.
    """
    try:
        yield
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        print(f"rank {communicator.Get_rank()} on {host_name()} failed:\n{text}", file=sys.stderr, flush=True)
        end_job(communicator, error)
        raise


class MpiTransport(Transport):
    """Rank 0's side. Waits for all ranks to be there, sends files and job.

    Args:
        job: What the run is about; ``job.isolation`` decides where trials run.
        communicator: From ``connect``.
        runner: Dotted name of the runner's class.
        log_dir: Where ``rank-N.log`` gets what worker N prints; standard error where ``None``.
        chaos: What is to go wrong on purpose.
        silence_s: A rank that gives no sign of life for so long is taken for lost (its node hangs, its network is cut).

    Raises:
        UsageError: The job cannot travel, a node lacks a folder, or the ranks run unlike versions. The caller still
            has to ``dismiss`` the other ranks.
    """

    def __init__(
        self,
        job: TuningJob,
        communicator: Any,
        *,
        runner: str = DEFAULT_RUNNER,
        log_dir: Path | None = None,
        chaos: Chaos | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._epoch = time.monotonic()
        self._comm = communicator
        self._link = MpiLink(communicator)
        self._log = OutputLog(log_dir)
        self._backoff = Backoff()
        self._lost: set[int] = set()
        self._silence_s = silence_s
        self._polled = self._epoch
        self._looked = self._epoch
        self._closed = False
        self.stuck: frozenset[int] = frozenset()
        """Ranks that did not leave when ``close`` told them to."""
        self._early: list[tuple[int, Any]] = []
        packed = pack_job(job)
        self._infos = self._gather()
        placements, self.warnings = place(self._infos.values(), job.evaluation.performance.cores_per_instance)
        self._share_files(job)
        in_process = job.isolation == "none"
        if chaos is not None:
            chaos, told = chaos.announced(ranks_may_go=self._link.size > 1 and survives_losses())
            self.warnings = (*self.warnings, *told)
        limits = memory_limits(self._infos.values(), job.limits.memory_bytes)
        for rank in filter(None, self._infos):
            start = p.Start(packed, runner, self.now(), in_process, placements[rank], limits[rank], chaos)
            self._link.send(rank, start)
        host = self._infos[0].host
        self._unsettle = settle(placements[0])
        self._own: Worker = (
            InlineWorker(job, host, 0, runner=runner, epoch=self._epoch)
            if in_process
            else ChildWorker(packed, host, 0, runner=runner, epoch=self._epoch, memory_limit=limits[0], chaos=chaos)
        )
        # A rank that computes itself says nothing meanwhile.
        self._watched: frozenset[int] = frozenset() if in_process else frozenset(filter(None, self._infos))

    @property
    def workers(self) -> Sequence[WorkerInfo]:
        return () if self._closed else [info for rank, info in sorted(self._infos.items()) if rank not in self._lost]

    def send(self, rank: int, message: Request | Broadcast) -> None:
        if self._check(rank):
            self._own.send(message)
        else:
            self._link.send(rank, p.Work(message))

    def cancel(self, rank: int, request_id: int) -> None:
        if self._check(rank):
            self._own.cancel(request_id)
        else:
            self._link.send(rank, p.Cancel(request_id))

    def hold(self, rank: int) -> None:
        if self._check(rank):
            self._own.suspend()
        else:
            self._link.send(rank, p.Hold())

    def release(self, rank: int) -> None:
        if self._check(rank):
            self._own.resume()
        else:
            self._link.send(rank, p.Release())

    def poll(self, timeout: float) -> Sequence[Event]:
        deadline = time.monotonic() + timeout
        while True:
            events = self._collect()
            if events:
                self._backoff.reset()
                return events
            left = deadline - time.monotonic()
            if left <= 0:
                return events
            wait_for([self._own], min(left, self._backoff.pause(self._link.sending)))

    def now(self) -> float:
        return time.monotonic() - self._epoch

    def close(self, exit_code: int = 0) -> None:
        """End every worker. Ranks that do not leave in time (they compute in the rank itself) are then ``stuck``."""
        if self._closed:
            return
        self._closed = True
        # A silent rank may hear it yet; one that does not must not keep the job from ending.
        alive = {rank for rank in self._infos if rank and rank not in self._link.lost}
        for rank in alive:
            self._link.send(rank, p.Leave(exit_code))
        self._own.close()
        self._keep_output(0, self._own.take_output())
        self._unsettle()
        self.stuck = frozenset(_see_off(self._link, alive, self._on_message))

    # ------------------------------------------------------------------------------------------------------- start-up

    def _gather(self) -> dict[int, WorkerInfo]:
        infos = {0: worker_info(0)}
        ours = dict(versions())
        while len(infos) < self._link.size:
            source, message = self._next(p.Join)
            for name, version in message.versions:
                if version != ours[name]:
                    raise UsageError(
                        f"rank {source} on {message.info.host} runs {name} {version}, rank 0 on {infos[0].host} runs "
                        f"{ours[name]}; install the same version on all nodes"
                    )
            infos[source] = message.info
        seen: dict[str, int] = {}
        numbered: dict[int, WorkerInfo] = {}
        for rank in sorted(infos):
            host = infos[rank].host
            numbered[rank] = replace(infos[rank], local_rank=seen.get(host, 0))
            seen[host] = seen.get(host, 0) + 1
        return numbered

    def _share_files(self, job: TuningJob) -> None:
        """Send each node what it lacks, and see to it that each of its ranks has it then."""
        leaders: dict[str, int] = {}
        for rank, info in self._infos.items():
            leaders.setdefault(info.host, rank)
        others = {rank: host for host, rank in leaders.items() if rank != 0}
        if not others:
            return
        manifest = p.Manifest(tuple(map(file_entry, files_of(job))), tuple(map(str, folders_of(job))))
        for rank in others:
            self._link.send(rank, manifest)
        problems: list[str] = []
        lacking: dict[int, tuple[str, ...]] = {}
        for _ in others:
            source, message = self._next(p.Lacks)
            lacking[source] = message.paths
            problems += message.problems
        if problems:
            raise UsageError("\n".join(sorted(problems)))
        for rank, missing in lacking.items():
            for path in missing:
                for data in read_chunks(path):
                    self._link.send(rank, p.Chunk(path, data))
                    # Bounds the memory to one piece per node that receives.
                    self._link.drain(float("inf"))
                self._link.send(rank, p.Chunk(path, b""))
        adopting = []
        for source, message in [self._next(p.Stored) for _ in filter(None, lacking.values())]:
            for rank, info in self._infos.items():
                if info.host == others[source] and rank != source:
                    self._link.send(rank, p.Adopt(message.paths))
                    adopting.append(rank)
        for _ in adopting:
            self._next(p.Stored)

    def _next(self, kind: type) -> tuple[int, Any]:
        """Wait for the next message of a kind; the others keep their turn."""
        backoff = Backoff()
        while True:
            for index, (source, message) in enumerate(self._early):
                if isinstance(message, kind):
                    del self._early[index]
                    return source, message
            arrived = self._link.receive()
            self._early += arrived
            if self._link.lost:
                raise TransportError(f"ranks {sorted(self._link.lost)} died at the start")
            if not arrived:
                time.sleep(backoff.pause(self._link.sending))

    # --------------------------------------------------------------------------------------------------------- running

    def _check(self, rank: int) -> bool:
        """Whether ``rank`` is this rank's own worker.

        Raises:
            TransportError: No such living worker.
        """
        if self._closed or rank not in self._infos or rank in self._lost:
            raise TransportError(f"there is no worker {rank}")
        return rank == 0

    def _collect(self) -> list[Event]:
        events: list[Event] = []
        for source, message in self._link.receive():
            if isinstance(message, p.Answer):
                events.append(ResultArrived(message.result))
            else:
                self._on_message(source, message)
        for rank in sorted(self._link.lost - self._lost):
            self._lost.add(rank)
            events.append(WorkerLost(rank, f"rank {rank} on {self._infos[rank].host} died"))
        for rank in self._silent():
            self._lost.add(rank)
            where = f"rank {rank} on {self._infos[rank].host}"
            events.append(WorkerLost(rank, f"{where} has given no sign of life for {self._silence_s:g} s"))
        # In this rank itself a whole trial is run here, and the answers of the others must not wait for that.
        if not events or isinstance(self._own, ChildWorker):
            events += [ResultArrived(result) for result in self._own.receive()]
            self._log.write(0, self._own.take_output())
        return events

    def _silent(self) -> list[int]:
        """Ranks that are taken for lost from now on."""
        now = time.monotonic()
        away = now - self._polled
        self._polled = now
        if away > _HELD_UP_S:  # it was this rank that stood still: what came meanwhile is yet to be taken in
            self._link.heard.clear()
        if now - self._looked < _LOOK_S:
            return []
        self._looked = now
        return [
            rank
            for rank in sorted(self._watched - self._lost)
            if now - self._link.heard.setdefault(rank, now) > self._silence_s
        ]

    def _on_message(self, source: int, message: object) -> None:
        if isinstance(message, p.Output):
            self._keep_output(source, message.data)

    def _keep_output(self, rank: int, data: bytes) -> None:
        """Log what a worker has printed; at the end, what a full disk does not take changes no outcome any more."""
        try:
            self._log.write(rank, data)
        except WorkspaceError:
            if not self._closed:
                raise


def _see_off(link: MpiLink, ranks: set[int], on_message: Callable[[int, object], None]) -> set[int]:
    """Wait until ``ranks`` have said goodbye; gives those that have not after a time of grace."""
    end = time.monotonic() + _GRACE_S
    backoff = Backoff()
    waiting = set(ranks)
    while waiting and time.monotonic() < end:
        for source, message in link.receive():
            if isinstance(message, p.Bye):
                waiting.discard(source)
            else:
                on_message(source, message)
        waiting -= link.lost
        if waiting:
            time.sleep(backoff.pause(link.sending))
    return waiting
