"""Workers on a virtual clock: for property tests of the engine, and for forecasts of a run.

Everything is decided by the arguments: the same calls give the same events at the same virtual times.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distune.distributed.chaos import SLOW_S, Chaos
from distune.distributed.transport import Event, ResultArrived, Transport, WorkerInfo, WorkerLost
from distune.errors import TransportError
from distune.trial.messages import Broadcast, Failure, Request, Result, ResultBody


@dataclass(frozen=True)
class Faults:
    """What goes wrong in a simulated run.

    Attributes:
        lost: Virtual time at which a worker is lost, by rank. Rank 0 cannot be: the master lives there.
        delay: Further seconds that an answer spends on its way, by rank and request; reorders answers.
        duplicates: Whether the answer to a request arrives a second time, and how much later.
    """

    lost: dict[int, float] = field(default_factory=dict)
    delay: Callable[[int, Request], float] = lambda rank, request: 0.0
    duplicates: Callable[[int, Request], float | None] = lambda rank, request: None


@dataclass
class _Worker:
    info: WorkerInfo
    queue: deque[Request | Broadcast] = field(default_factory=deque)
    current: Request | None = None
    body: ResultBody | None = None
    start_s: float = 0.0
    end_s: float = 0.0
    held_since: float | None = None
    generation: int = 0
    """Grows whenever what the worker was to finish is no longer to be finished then."""


class SimulatedTransport(Transport):
    """Simulated workers, each of which does one request at a time, in order.

    Args:
        answer: Answer to a request on a worker, and the seconds of work that it takes.
        workers: Number of workers, or what they are.
        faults: What goes wrong.
        hear: Told of each broadcast when a worker comes to it.
        chaos: What goes wrong with the work itself, as ``DISTUNE_CHAOS`` does it to real children and ranks.
    """

    def __init__(
        self,
        answer: Callable[[int, Request], tuple[ResultBody, float]],
        workers: int | Sequence[WorkerInfo] = 1,
        faults: Faults | None = None,
        hear: Callable[[int, Broadcast], None] = lambda rank, broadcast: None,
        chaos: Chaos | None = None,
    ) -> None:
        infos = (
            [WorkerInfo(rank, "simulated", rank) for rank in range(workers)] if isinstance(workers, int) else workers
        )
        self._answer = answer
        self._faults = faults or Faults()
        self._hear = hear
        self._chaos = chaos
        self._workers = {info.rank: _Worker(info) for info in infos}
        self._now = 0.0
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], Event | None]]] = []
        for rank, when in sorted(self._faults.lost.items()):
            if rank == 0 or rank not in self._workers:
                raise ValueError(f"worker {rank} cannot be lost")
            self._at(when, functools.partial(self._lose, rank))

    @property
    def workers(self) -> Sequence[WorkerInfo]:
        return [worker.info for _, worker in sorted(self._workers.items())]

    def send(self, rank: int, message: Request | Broadcast) -> None:
        worker = self._worker(rank)
        worker.queue.append(message)
        self._begin(worker)

    def cancel(self, rank: int, request_id: int) -> None:
        worker = self._worker(rank)
        for message in list(worker.queue):
            if isinstance(message, Request) and message.id == request_id:
                worker.queue.remove(message)
                self._answered(worker, message, Failure("cancelled", "cancelled before it began"), self._now)
        if worker.current is not None and worker.current.id == request_id:
            request, worker.current = worker.current, None
            worker.generation += 1
            self._answered(worker, request, Failure("cancelled", "cancelled by the master"), worker.start_s)
            self._begin(worker)

    def hold(self, rank: int) -> None:
        worker = self._worker(rank)
        if worker.held_since is None:
            worker.held_since = self._now
            worker.generation += 1

    def release(self, rank: int) -> None:
        worker = self._worker(rank)
        if worker.held_since is not None:
            worker.end_s += self._now - worker.held_since
            worker.held_since = None
            if worker.current is not None:
                self._finish_later(worker)
            self._begin(worker)

    def poll(self, timeout: float) -> Sequence[Event]:
        end = self._now + timeout
        events: list[Event] = []
        while self._agenda and self._agenda[0][0] <= (self._now if events else end):
            when, _, happen = heapq.heappop(self._agenda)
            self._now = max(self._now, when)
            event = happen()
            if event is not None:
                events.append(event)  # and whatever else happens at the same moment
        if not events:
            self._now = max(self._now, end)
        return events

    def now(self) -> float:
        return self._now

    def close(self, exit_code: int = 0) -> None:
        self._workers.clear()
        self._agenda.clear()

    def _worker(self, rank: int) -> _Worker:
        if rank not in self._workers:
            raise TransportError(f"there is no worker {rank}; there are: {sorted(self._workers)}")
        return self._workers[rank]

    def _at(self, when: float, happen: Callable[[], Event | None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), happen))

    def _begin(self, worker: _Worker) -> None:
        """Have an idle worker come to its next request."""
        while worker.queue and worker.current is None and worker.held_since is None:
            message = worker.queue.popleft()
            if not isinstance(message, Request):
                self._hear(worker.info.rank, message)
                continue
            body, seconds = self._answer(worker.info.rank, message)
            body, seconds = self._struck(worker.info.rank, message, body, seconds)
            deadline = message.deadline_s
            if deadline is not None and seconds > deadline:
                body, seconds = Failure("deadline", f"not done after {deadline:g} s", limit=deadline), deadline
            worker.current = message
            worker.start_s, worker.end_s = self._now, self._now + seconds
            worker.body = body
            self._finish_later(worker)

    def _struck(self, rank: int, request: Request, body: ResultBody, seconds: float) -> tuple[ResultBody, float]:
        """What chaos makes of an answer and of the seconds that it takes."""
        fate = None if self._chaos is None else self._chaos.fate(request)
        if fate is None:
            return body, seconds
        if fate.kind == "crash":
            return Failure("crash", f"{fate.death}, by DISTUNE_CHAOS"), seconds * fate.moment
        if fate.kind == "hang":
            return body, float("inf")
        if fate.kind == "slow":
            return body, seconds + fate.moment * SLOW_S
        if rank:
            self._at(self._now + seconds * fate.moment, functools.partial(self._lose, rank))
        return body, seconds

    def _finish_later(self, worker: _Worker) -> None:
        worker.generation += 1
        generation = worker.generation

        def finish() -> None:
            if worker.generation == generation and worker.current is not None and worker.body is not None:
                request, worker.current = worker.current, None
                self._answered(worker, request, worker.body, worker.start_s)
                self._begin(worker)

        self._at(worker.end_s, finish)

    def _answered(self, worker: _Worker, request: Request, body: ResultBody, start_s: float) -> None:
        """Put an answer on its way; what is on its way when the worker is lost still arrives."""
        rank = worker.info.rank
        result = Result(request.id, request.attempt, rank, body, request.run, start_s, self._now)
        arrival = self._now + self._faults.delay(rank, request)
        self._at(arrival, lambda: ResultArrived(result))
        again = self._faults.duplicates(rank, request)
        if again is not None:
            self._at(arrival + again, lambda: ResultArrived(result))

    def _lose(self, rank: int) -> Event | None:
        worker = self._workers.pop(rank, None)
        if worker is None:
            return None
        worker.generation += 1
        worker.current = None
        return WorkerLost(rank, f"worker {rank} was lost at {self._now:g} s")
