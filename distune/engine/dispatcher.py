"""Gets work done: joins the scheduler, the transport and the journal.

Work is submitted and its outcome collected; in between, ``pump`` moves events and instructions. Every result is in the
journal, on disk, before its outcome is handed out, and work whose result the journal already holds is not done again:
that is the whole of resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from threading import Thread
from typing import TypeVar

from distune.distributed.transport import Event, Transport, WorkerInfo
from distune.engine.quarantine import STRIKING, Quarantine, Quarantined
from distune.engine.scheduler import Cancel, Done, Instruction, Resume, Scheduler, Send, Suspend, Task
from distune.errors import TransportError
from distune.journal.journal import Journal
from distune.journal.replay import JournalledBody, encode_result, known_results, request_key
from distune.trial.messages import Broadcast, Failure, RequestBody, ResultBody

_POLL_S = 0.5
"""Longest sleep in one poll: how soon an interruption or a timeout is noticed when nothing arrives."""

_THINK_S = 0.1
"""How often the master looks at its mail while a strategy thinks."""

_UNDONE = ("lost", "cancelled")
"""Failures that say nothing about the work."""

T = TypeVar("T")


class Interrupted(Exception):
    """Somebody asked the run to stop; carries the reason."""


@dataclass(frozen=True)
class Outcome:
    """What became of a piece of work.

    Attributes:
        start_s, end_s: Seconds since the run first began, those before a resume included.
        attempts: How often it was handed out.
    """

    body: ResultBody
    rank: int
    host: str
    start_s: float
    end_s: float
    attempts: int = 1

    @property
    def meta(self) -> dict[str, object]:
        """What the journal keeps beside the body."""
        return {
            "rank": self.rank,
            "host": self.host,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "attempts": self.attempts,
        }


@dataclass
class Busy:
    """Seconds that workers spent on each kind of work, for the result's ``timing``."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, seconds: float) -> None:
        """Count ``seconds`` of ``kind``."""
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    @property
    def total(self) -> float:
        """All kinds together."""
        return sum(self.seconds.values())


class Dispatcher:
    """See the module's description.

    Args:
        transport: Already connected.
        run: Identity of the run.
        on_event: Told of every event after it was handled, e.g. to warn of a lost worker.
        can_hold: Workers can be made to hold still in mid-work, because trials run in children of theirs.
        on_quarantine: Told of every config that is quarantined.
        on_sent: Called when work went out to workers.
    """

    def __init__(
        self,
        transport: Transport,
        run: str = "",
        on_event: Callable[[Event], None] = lambda event: None,
        can_hold: bool = False,
        on_quarantine: Callable[[Quarantined], None] = lambda entry: None,
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        self._transport = transport
        self._scheduler = Scheduler(transport.workers, run, can_hold)
        self._on_event = on_event
        self._on_sent = on_sent
        self._journal: Journal | None = None
        self._known: dict[str, Outcome] = {}
        self._failed: dict[str, tuple[Failure, Outcome]] = {}
        """Failures of earlier starts."""
        self._keys: dict[int, str] = {}
        """What the tasks that are open are about."""
        self._open: dict[str, int] = {}
        """Tasks that whoever asks for the same may wait for, too: those that are open and were not cancelled."""
        self._used: set[str] = set()
        self._outcomes: dict[int, Outcome] = {}
        self._next_id = 1
        self._hosts = {worker.rank: worker.host for worker in transport.workers}
        self.quarantine = Quarantine(on_quarantine)
        self.busy = Busy()
        self.interruption: str | None = None
        self.offset_s = 0.0
        self.deadline_s: float | None = None
        """Seconds that a trial, a measurement or a probe may take; ``None`` while nothing is known of the model."""
        self.memory_bytes: int | None = None
        """Bytes that a child may keep resident, where the user says so."""

    def use(self, journal: Journal) -> None:
        """Keep results in ``journal`` from now on, and answer from those that it holds.

        Failures of earlier starts are tried again, since their cause may be mended (a missing file, a full disk, a
        deadline that was too short), but for those that quarantine a config still.
        """
        self._journal = journal
        for key, found in known_results(journal).items():
            outcome = Outcome(found.body, **found.meta)
            self.offset_s = max(self.offset_s, outcome.end_s)
            if isinstance(found.body, Failure):
                self._failed[key] = (found.body, outcome)
            else:
                self._known[key] = outcome

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """Workers that are alive."""
        return self._scheduler.workers

    @property
    def lost(self) -> dict[int, str]:
        """Why each lost worker was lost, by rank."""
        return self._scheduler.lost

    @property
    def active(self) -> dict[int, Task]:
        """What each busy worker does."""
        return self._scheduler.busy

    def now(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self._transport.now() + self.offset_s

    @property
    def results(self) -> int:
        """Results that the journal holds, without the failures of earlier starts."""
        return len(self._known)

    def knows(self, body: RequestBody) -> bool:
        """Whether the journal holds the answer."""
        return self._answer(request_key(body), body) is not None

    def _answer(self, key: str, body: RequestBody) -> Outcome | None:
        if key in self._known or key not in self._failed:
            return self._known.get(key)
        failure, outcome = self._failed[key]
        return outcome if Quarantine.stands(body, failure, self.deadline_s, self.memory_bytes) else None

    def submit(self, body: RequestBody, *, priority: int = 0, exclusive: bool = False, rank: int | None = None) -> int:
        """Have ``body`` done; returns the task's id.

        Work that is under way already is not begun again (the same id is returned), unless a ``rank`` is named.
        """
        key = request_key(body) if rank is None else ""
        if key in self._open:
            self._scheduler.want(self._open[key])
            return self._open[key]
        task = Task(self._next_id, body, priority, exclusive, rank, self.deadline_s if key else None)
        self._next_id += 1
        known = self._answer(key, body) if key else None
        refused = self.quarantine.refusal(body) if known is None else None
        if refused is not None:
            now = self.now()
            self._outcomes[task.id] = Outcome(refused.failure, refused.rank, refused.host, now, now, 0)
        elif known is not None:
            if isinstance(known.body, Failure):
                self.quarantine.note(body, known.body, known.rank, known.host)
            self._outcomes[task.id] = known
            if key not in self._used:
                self._used.add(key)
                self.busy.add(type(body).__name__, known.end_s - known.start_s)
        else:
            if key:
                self._keys[task.id] = key
                self._open[key] = task.id
            self._carry_out(self._scheduler.submit(task))
        return task.id

    def submit_new(self, body: RequestBody) -> Sequence[int]:
        """Have ``body`` done when nothing else is to be done; its id, none where it is under way or known already."""
        return () if request_key(body) in self._open or self.knows(body) else (self.submit(body, priority=1),)

    @property
    def idle(self) -> int:
        """Workers that have nothing to do and nothing waiting for them."""
        return self._scheduler.idle

    def broadcast(self, message: Broadcast) -> None:
        """Hand ``message`` to every worker, before anything that is submitted from now on."""
        for worker in self._scheduler.workers:
            self._transport.send(worker.rank, message)

    def take(self, task_id: int) -> Outcome | None:
        """The outcome of a task, once; ``None`` while it is open."""
        return self._outcomes.pop(task_id, None)

    def are_done(self, task_ids: Iterable[int]) -> bool:
        """Whether each of the tasks has an outcome that was not taken yet."""
        return all(task_id in self._outcomes for task_id in task_ids)

    def drop(self, task_ids: Iterable[int]) -> None:
        """Forget tasks: those that have not gone out are not done; the others' answers are journalled for later."""
        unwanted = set(task_ids)
        running = {task.id for task in self._scheduler.busy.values()}
        for task_id in unwanted - running:
            self._outcomes.pop(task_id, None)
            self._close(task_id)
            self._keys.pop(task_id, None)
        self._carry_out(self._scheduler.drop(unwanted))

    def give_up(self, task_ids: Iterable[int]) -> None:
        """As ``drop``, and those that are being worked on end now, unfinished."""
        unwanted = set(task_ids)
        self.drop(unwanted)
        self._cancel(unwanted)

    def calm(self) -> None:
        """Have the workers free: what they do is wanted by nobody."""
        self._cancel({task.id for task in self._scheduler.busy.values()})

    def _cancel(self, task_ids: Iterable[int]) -> None:
        for task_id in task_ids:
            self._close(task_id)
        self._carry_out(self._scheduler.cancel(task_ids))

    def _close(self, task_id: int) -> None:
        """Whoever asks for what ``task_id`` is about does not wait for it any more."""
        key = self._keys.get(task_id, "")
        if self._open.get(key) == task_id:
            del self._open[key]

    def wait(self, task_ids: Sequence[int]) -> list[Outcome]:
        """The outcomes of ``task_ids``, in their order; pumps until all are there.

        Raises:
            Interrupted, TransportError: See ``pump``.
        """
        return self.wait_until(lambda: False, task_ids)

    def wait_until(self, over: Callable[[], bool], task_ids: Sequence[int]) -> list[Outcome]:
        """As ``wait``, until ``over``: the outcomes that are there then, in the order of ``task_ids``; drops the rest.

        Raises:
            Interrupted, TransportError: See ``pump``.
        """
        found: dict[int, Outcome] = {}
        while True:
            for task_id in task_ids:
                if task_id not in found and (outcome := self.take(task_id)) is not None:
                    found[task_id] = outcome
            missing = [task_id for task_id in task_ids if task_id not in found]
            if not missing or over():
                self.drop(missing)
                return [found[task_id] for task_id in task_ids if task_id in found]
            self.pump()

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Do ``work`` in a thread of its own and pump until it is done; gives what it returns, raises what it raises.

        Raises:
            Interrupted, TransportError: See ``pump``; ``work`` is left to itself then.
        """
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(work())
            except BaseException as error:  # handed to the caller of meanwhile()
                answer.set_exception(error)

        Thread(target=run, name="distune-thinking", daemon=True).start()
        while True:
            done, _ = wait_for([answer], _THINK_S)
            if done:
                return answer.result()
            self.pump(0.0)

    def pump(self, timeout: float = _POLL_S) -> None:
        """Wait up to ``timeout`` seconds for events and handle all that there are.

        Raises:
            Interrupted: ``interruption`` was set.
            TransportError: No worker is left.
        """
        if self.interruption is not None:
            raise Interrupted(self.interruption)
        if not self._scheduler.workers:
            raise TransportError("no worker is left; run the same command again to resume")
        events = self._transport.poll(timeout)
        if not events:
            return
        instructions = self._scheduler.on_events(*events)
        self._carry_out(instructions)
        for event in events:
            self._on_event(event)
        self._settle([instruction for instruction in instructions if isinstance(instruction, Done)])

    def _settle(self, done: Sequence[Done]) -> None:
        """Journal what was done, in one commit, and only then hand it out."""
        outcomes: dict[int, Outcome] = {}
        for item in done:
            self.busy.add(type(item.task.body).__name__, item.result.end_s - item.result.start_s)
            self._close(item.task.id)
            key = self._keys.pop(item.task.id, "")
            if not item.wanted and _says_nothing(item.result.body):
                continue  # it had not all its attempts, and one rank alone would not have begun it
            outcome = self._known.get(key)  # of the same work, which was cancelled, but whose answer was under way
            if outcome is None:
                outcome = self._learnt(key, item)
            if item.wanted:
                outcomes[item.task.id] = outcome
        if done and self._journal is not None:
            self._journal.commit()
        self._outcomes.update(outcomes)

    def _learnt(self, key: str, item: Done) -> Outcome:
        """Enter an outcome in the journal and, where it cost children, in the quarantine."""
        result = item.result
        outcome = Outcome(
            result.body,
            result.rank,
            self._hosts.get(result.rank, ""),
            result.start_s + self.offset_s,
            result.end_s + self.offset_s,
            self._scheduler.attempts(item.task.id),
        )
        if isinstance(result.body, Failure):
            self.quarantine.note(item.task.body, result.body, outcome.rank, outcome.host)
        undone = isinstance(result.body, Failure) and result.body.kind in _UNDONE
        if key and not undone and self._journal is not None and isinstance(result.body, JournalledBody):
            self._journal.append("result", encode_result(key, result.body, outcome.meta))
            self._known[key] = outcome
            self._used.add(key)
        return outcome

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        sent = False
        for instruction in instructions:
            match instruction:
                case Send():
                    self._transport.send(instruction.rank, instruction.request)
                    sent = True
                case Suspend():
                    self._transport.hold(instruction.rank)
                case Resume():
                    self._transport.release(instruction.rank)
                case Cancel():
                    self._transport.cancel(instruction.rank, instruction.id)
                case _:
                    pass  # Hold and Release are for those who watch, Done is settled by pump()
        if sent:
            self._on_sent()


def _says_nothing(body: ResultBody) -> bool:
    """Whether the answer to abandoned work leaves open what becomes of it where it is wanted."""
    return isinstance(body, Failure) and body.kind in (*_UNDONE, *STRIKING)
