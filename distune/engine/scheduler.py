"""Who works on what: a pure state machine.

Events go in (a task is submitted, a result arrives, a worker joins or is lost), instructions come out (send, hold,
release). It has no clock, no transport and no file of its own, so it runs unchanged under MPI, in one process, in the
simulator and under property tests.

A task is *open* until it has one outcome. Tasks go out by priority, then in order of submission. An exclusive task
(a latency measurement) needs a quiet host: as soon as one worker there is idle it starts, its busy neighbours hold
still in the midst of what they do, and nobody there gets anything new until it is over. Where workers cannot be held
(trials run in the rank itself), it waits until they are done. A worker that is lost gives its task back; a task whose
child process died is tried once more and then reported as failed. A task that was dropped while a worker was at it is
*abandoned*: it gets no further attempt.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from distune.distributed.transport import Event, ResultArrived, WorkerInfo, WorkerLost
from distune.engine.quarantine import STRIKING
from distune.trial.messages import Failure, Request, RequestBody, Result

STRIKES = 2
"""Children that one task may cost before it is reported as failed."""


@dataclass(frozen=True)
class Task:
    """Work that the master wants done once.

    Attributes:
        id: Unique in the run; becomes the request's id.
        priority: Smaller goes first.
        exclusive: Needs a quiet host.
        rank: Only this worker may do it; ``None`` means any.
        deadline_s: Seconds after which the worker's child is ended and the task is tried once more.
    """

    id: int
    body: RequestBody
    priority: int = 0
    exclusive: bool = False
    rank: int | None = None
    deadline_s: float | None = None


@dataclass(frozen=True)
class Send:
    """Hand ``request`` to worker ``rank``."""

    rank: int
    request: Request


@dataclass(frozen=True)
class Hold:
    """A quiet window is wanted on ``host``."""

    host: str


@dataclass(frozen=True)
class Release:
    """The quiet window of ``host`` is over."""

    host: str


@dataclass(frozen=True)
class Suspend:
    """Worker ``rank`` is to hold still in the midst of its work."""

    rank: int


@dataclass(frozen=True)
class Resume:
    """Worker ``rank`` may go on."""

    rank: int


@dataclass(frozen=True)
class Cancel:
    """Nobody wants what worker ``rank`` is doing: it is to give request ``id`` up."""

    rank: int
    id: int


@dataclass(frozen=True)
class Done:
    """A task has its outcome: the last result. One that is not ``wanted`` was abandoned."""

    task: Task
    result: Result
    wanted: bool = True


Instruction = Send | Hold | Release | Suspend | Resume | Cancel | Done


@dataclass
class _Worker:
    info: WorkerInfo
    task: Task | None = None


@dataclass(order=True)
class _Queued:
    priority: int
    id: int
    task: Task = field(compare=False)


class Scheduler:
    """See the module's description.

    Args:
        workers: The workers that are there at the start.
        run: Identity of the run; results of another one are ignored.
        can_hold: Workers can be made to hold still in mid-work.
    """

    def __init__(self, workers: Iterable[WorkerInfo], run: str = "", can_hold: bool = False) -> None:
        self._run = run
        self._can_hold = can_hold
        self._held: dict[str, list[int]] = {}
        self._workers = {info.rank: _Worker(info) for info in sorted(workers, key=lambda info: info.rank)}
        self._infos = tuple(worker.info for worker in self._workers.values())
        self._free = list(self._workers)  # ranks without a task, in order
        self._queue: list[_Queued] = []
        self._exclusive: list[_Queued] = []
        self._attempts: dict[int, int] = {}
        self._strikes: dict[int, int] = {}
        self._quiet: dict[str, Task] = {}
        self._abandoned: set[int] = set()
        self.lost: dict[int, str] = {}

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """Workers that are alive, by rank."""
        return self._infos

    @property
    def busy(self) -> dict[int, Task]:
        """What each busy worker does, by rank."""
        return {rank: worker.task for rank, worker in self._workers.items() if worker.task is not None}

    @property
    def idle(self) -> int:
        """Workers without work beyond what waits in the queues; those of a quiet host do not count."""
        free = (
            sum(self._workers[rank].info.host not in self._quiet for rank in self._free)
            if self._quiet
            else len(self._free)
        )
        return max(0, free - len(self._queue) - len(self._exclusive))

    def attempts(self, task_id: int) -> int:
        """How often a task was handed out."""
        return self._attempts.get(task_id, 0)

    def submit(self, task: Task) -> list[Instruction]:
        """A new task; it may go out at once."""
        self._enqueue(task)
        return self._dispatch()

    def drop(self, task_ids: Iterable[int]) -> list[Instruction]:
        """Forget tasks that have not gone out, and abandon those that are being worked on: they end in one ``Done``."""
        unwanted = set(task_ids)
        self._abandoned.update(task.id for task in self.busy.values() if task.id in unwanted)
        self._withdraw(lambda task: task.id in unwanted)
        return [*self._close_windows(), *self._dispatch()]

    def want(self, task_id: int) -> None:
        """A task that may have been abandoned is wanted after all."""
        self._abandoned.discard(task_id)

    def cancel(self, task_ids: Iterable[int]) -> list[Instruction]:
        """Abandon tasks, and have the workers that are at them give them up; each still ends in one ``Done``."""
        unwanted = set(task_ids)
        running = {rank: task.id for rank, task in self.busy.items() if task.id in unwanted}
        self._abandoned.update(running.values())
        return [Cancel(rank, task_id) for rank, task_id in running.items()]

    def on_events(self, *events: Event) -> list[Instruction]:
        """What follows from events of the transport that were found together.

        All are taken in before anything goes out: a node that dies takes several workers at once, and none of them is
        to get what another one leaves behind.
        """
        out: list[Instruction] = []
        for event in events:
            out += self._on_result(event.result) if isinstance(event, ResultArrived) else self._on_lost(event)
        return [*out, *self._close_windows(), *self._dispatch()]

    def _on_result(self, result: Result) -> list[Done]:
        worker = self._workers.get(result.rank)
        task = worker.task if worker is not None else None
        if worker is None or task is None or task.id != result.request_id or result.run != self._run:
            return []  # late, doubled, or of a run before this one
        if result.attempt != self._attempts[task.id]:
            return []
        worker.task = None
        insort(self._free, result.rank)
        strikes = isinstance(result.body, Failure) and result.body.kind in STRIKING
        if strikes:
            self._strikes[task.id] = self._strikes.get(task.id, 0) + 1
        if strikes and self._strikes[task.id] < STRIKES and task.id not in self._abandoned:
            self._enqueue(task)
            return []
        return [self._done(task, result)]

    def _on_lost(self, event: WorkerLost) -> list[Instruction]:
        worker = self._workers.pop(event.rank, None)
        if worker is None:
            return []
        self._infos = tuple(worker.info for worker in self._workers.values())
        self.lost[event.rank] = event.reason
        out: list[Instruction] = []
        if worker.task is None:
            self._free.remove(event.rank)
        else:
            if worker.task.rank is None and worker.task.id not in self._abandoned:
                self._enqueue(worker.task)
            else:
                out.append(self._failed(worker.task, event.rank, event.reason))
        for entry in self._withdraw(lambda task: task.rank == event.rank):
            out.append(self._failed(entry.task, event.rank, event.reason))
        if not self._ranks_of(worker.info.host) and self._quiet.pop(worker.info.host, None) is not None:
            self._held.pop(worker.info.host, None)
            out.append(Release(worker.info.host))
        return out

    def _failed(self, task: Task, rank: int, reason: str) -> Done:
        body = Failure("lost", f"worker {rank} was lost: {reason}")
        return self._done(task, Result(task.id, self._attempts.get(task.id, 0), rank, body, self._run))

    def _done(self, task: Task, result: Result) -> Done:
        wanted = task.id not in self._abandoned
        self._abandoned.discard(task.id)
        return Done(task, result, wanted)

    def _enqueue(self, task: Task) -> None:
        heapq.heappush(self._exclusive if task.exclusive else self._queue, _Queued(task.priority, task.id, task))

    def _withdraw(self, unwanted: Callable[[Task], bool]) -> list[_Queued]:
        """Take tasks out of both queues."""
        taken = [entry for entry in (*self._queue, *self._exclusive) if unwanted(entry.task)]
        self._queue = [entry for entry in self._queue if not unwanted(entry.task)]
        self._exclusive = [entry for entry in self._exclusive if not unwanted(entry.task)]
        heapq.heapify(self._queue)
        heapq.heapify(self._exclusive)
        return taken

    def _close_windows(self) -> list[Instruction]:
        """Release hosts whose exclusive task is over or gone."""
        if not self._quiet:
            return []
        waiting = {entry.id for entry in self._exclusive}
        running = {worker.task.id for worker in self._workers.values() if worker.task is not None}
        out: list[Instruction] = []
        for host, task in list(self._quiet.items()):
            if task.id not in waiting and task.id not in running:
                del self._quiet[host]
                out += [*self._let_go(host), Release(host)]
        return out

    def _let_go(self, host: str) -> list[Instruction]:
        """Let the held workers of a host go on."""
        return [Resume(rank) for rank in self._held.pop(host, []) if rank in self._workers]

    def _dispatch(self) -> list[Instruction]:
        out = self._open_windows() if self._exclusive or self._quiet else []
        for rank in tuple(self._free) if self._queue else ():
            if not self._queue:
                break
            worker = self._workers[rank]
            if worker.info.host in self._quiet:
                continue
            task = self._next_for(worker)
            if task is not None:
                out.append(self._hand(worker, task))
        return out

    def _open_windows(self) -> list[Instruction]:
        """Give every waiting exclusive task a host, and start it where the host has become quiet."""
        out: list[Instruction] = []
        waiting = sorted(self._exclusive)
        placed = {task.id for task in self._quiet.values()}
        for entry in waiting:
            if entry.id in placed:
                continue
            host = self._host_for(entry.task)
            if host is not None:
                self._quiet[host] = entry.task
                out.append(Hold(host))
        for host, task in self._quiet.items():
            here = [worker for worker in self._workers.values() if worker.info.host == host]
            busy = [worker for worker in here if worker.task is not None]
            if busy and not self._can_hold:
                continue
            able = [worker for worker in here if worker.task is None and task.rank in (None, worker.info.rank)]
            waits = any(entry.id == task.id for entry in self._exclusive)
            if waits and not able:  # its worker was lost: those that held still for it are to get done
                out += self._let_go(host)
            if waits and able:
                if self._can_hold:
                    # Some are held already where the task is handed out again: its child or its worker was lost.
                    held = self._held.setdefault(host, [])
                    more = [worker.info.rank for worker in busy if worker.info.rank not in held]
                    held += more
                    out += [Suspend(rank) for rank in more]
                self._exclusive = [entry for entry in self._exclusive if entry.id != task.id]
                heapq.heapify(self._exclusive)
                chosen = min(able, key=lambda worker: worker.info.rank)
                if chosen.info.rank in self._held.get(host, []):  # its answer was under way when it was held
                    self._held[host].remove(chosen.info.rank)
                    out.append(Resume(chosen.info.rank))
                out.append(self._hand(chosen, task))
        return out

    def _host_for(self, task: Task) -> str | None:
        """The host without a quiet window that has the fewest busy workers; the lowest rank decides between equals."""
        loads: dict[str, tuple[int, int]] = {}
        for rank, worker in self._workers.items():
            host = worker.info.host
            if host in self._quiet or task.rank not in (None, *self._ranks_of(host)):
                continue
            load, first = loads.get(host, (0, rank))
            loads[host] = (load + (worker.task is not None), first)
        return min(loads, key=lambda host: loads[host], default=None)

    def _ranks_of(self, host: str) -> Sequence[int]:
        return [rank for rank, worker in self._workers.items() if worker.info.host == host]

    def _next_for(self, worker: _Worker) -> Task | None:
        kept: list[_Queued] = []
        found: Task | None = None
        while self._queue and found is None:
            entry = heapq.heappop(self._queue)
            if entry.task.rank in (None, worker.info.rank):
                found = entry.task
            else:
                kept.append(entry)
        for entry in kept:
            heapq.heappush(self._queue, entry)
        return found

    def _hand(self, worker: _Worker, task: Task) -> Send:
        worker.task = task
        self._free.remove(worker.info.rank)
        self._attempts[task.id] = self._attempts.get(task.id, 0) + 1
        request = Request(task.id, task.body, self._attempts[task.id], self._run, task.deadline_s)
        return Send(worker.info.rank, request)
