"""A worker whose trials run in a child process: whatever a trial does to its process, the agent lives on.

The child is started by exec in a session of its own, without any variable of the MPI launcher (a child that imports
mpi4py with inherited variables takes its parent down with it). It gets one request at a time; the rest of the queue
stays here, so that a dead child costs exactly the request that it was working on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from distune.backends.node_folder import remove_unused
from distune.distributed.chaos import Chaos
from distune.distributed.child_process import ChildProcess
from distune.distributed.child_protocol import Close, Ready, Setup, encode_stop
from distune.distributed.frames import encode_frame
from distune.distributed.runner_host import DEFAULT_RUNNER
from distune.distributed.worker import Worker
from distune.trial.messages import DOING, Broadcast, Failure, FailureKind, LoadStatistics, Request, Result, UseOrder

_READY_S = 900.0
"""Longest time in which a child may import and load what the job needs; deadlines of requests count from then on."""

_STOP_S = 2.0
"""Longest time in which a child may end a request that was cancelled; about what a new child costs."""

_OUTPUT_KEPT = 1 << 20
_OUTPUT_EVERY_S = 0.5
_MEMORY_EVERY_S = 0.2


class ChildWorker(Worker):
    """See the module's description.

    A child that dies is replaced when there is work for it again; the new one gets the job anew, and every broadcast
    that is to be kept.

    Args:
        job: The packed job (``worker.pack_job``).
        host: Name of the node.
        rank: The worker's rank.
        runner: Dotted name of the runner's class.
        epoch: ``time.monotonic()`` at the start of the run.
        memory_limit: Bytes the child's process group may keep resident; ``None`` means no limit.
        chaos: What is to go wrong on purpose.
        paths: Where to read files that the node lacks, by the path that the job names.
    """

    def __init__(
        self,
        job: bytes,
        host: str,
        rank: int,
        *,
        runner: str = DEFAULT_RUNNER,
        epoch: float | None = None,
        memory_limit: int | None = None,
        chaos: Chaos | None = None,
        paths: Mapping[str, str] | None = None,
    ) -> None:
        self._job = job
        self._host = host
        self._rank = rank
        self._runner = runner
        self._epoch = time.monotonic() if epoch is None else epoch
        self._memory_limit = memory_limit
        self._chaos = chaos
        self._paths = paths or {}
        self._queue: deque[Request | Broadcast] = deque()
        self._kept: dict[object, Broadcast] = {}
        self._current: Request | None = None
        self._clock = _Stopwatch()
        self._stop_s: float | None = None
        """Reading of the clock at which the current request, which was cancelled, must have ended."""
        self._answered: list[Result] = []
        self._process: ChildProcess | None = None
        self._suspended = False
        self._closed = False
        self._printed = bytearray()
        self._memory_checked = 0.0
        self._collected = 0.0
        self._start()

    @property
    def pid(self) -> int | None:
        """Process id of the child, ``None`` while there is none."""
        return self._process.pid if self._process is not None else None

    def send(self, message: Request | Broadcast) -> None:
        self._queue.append(message)
        self._advance()

    def receive(self) -> list[Result]:
        if self._process is not None:
            stirs = self._process.stirs
            dead = stirs and self._process.has_ended()  # asked first: what it wrote before its end is then all there
            self._take(self._process.receive(to_the_end=dead) if stirs else ())
            if dead:
                self._bury("crash", "")
            else:
                self._watch()
        self._advance()
        answered, self._answered = self._answered, []
        return answered

    def cancel(self, request_id: int) -> None:
        for message in list(self._queue):
            if isinstance(message, Request) and message.id == request_id:
                self._queue.remove(message)
                self._answer(message, Failure("cancelled", f"request {request_id} was cancelled before it began"), 0.0)
        if self._current is not None and self._current.id == request_id and self._stop_s is None:
            assert self._process is not None
            self._process.send(encode_stop(request_id))
            self._stop_s = self._clock.seconds() + _STOP_S

    def readable(self) -> Sequence[int]:
        return self._process.readable if self._process is not None else ()

    def writable(self) -> Sequence[int]:
        return self._process.writable if self._process is not None else ()

    def due(self) -> float:
        if self._answered:
            return 0.0
        if self._current is None or self._suspended:
            return float("inf")
        wait = float("inf")
        ends = [end for end in (self._current.deadline_s, self._stop_s) if end is not None]
        if ends:
            wait = max(0.0, min(ends) - self._clock.seconds())
        return wait if self._memory_limit is None else min(wait, _MEMORY_EVERY_S)

    def suspend(self) -> None:
        if not self._suspended:
            self._suspended = True
            self._clock.stop()
            if self._process is not None:
                self._process.signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        if self._suspended:
            self._suspended = False
            if self._process is not None:
                self._process.signal_group(signal.SIGCONT)
                if self._current is not None and self._process.ready:
                    self._clock.start()
            self._advance()

    def take_output(self) -> bytes:
        if not self._printed:
            return b""
        printed = bytes(self._printed)
        self._printed.clear()
        return printed

    def close(self) -> None:
        self._closed = True
        self._queue.clear()
        if self._process is not None:
            peaceful = self._current is None and not self._suspended
            self._process.end(close=encode_frame(Close()) if peaceful else None)
            self._forget()
            remove_unused()  # of this child, or of that of a rank that was lost
        self._current = None

    # ------------------------------------------------------------------------------------------------ the child's life

    def _start(self) -> None:
        self._process = ChildProcess()
        setup = Setup(
            self._job,
            self._runner,
            self._host,
            self._rank,
            self._epoch,
            tuple(sys.path),
            tuple((name, os.environ.get(name)) for name in ("PYTHONPATH", "PYTHONSAFEPATH")),
            self._chaos,
            self._memory_limit,
            self._paths,
        )
        self._process.send(encode_frame(setup))
        for broadcast in self._kept.values():
            self._process.send(encode_frame(broadcast))

    def _advance(self) -> None:
        """Hand out what can be handed out, and write what is waiting to be written."""
        if self._queue and self._current is None and self._process is not None and self._process.has_ended():
            self._bury("crash", "")  # died while idle: nobody's fault
        while self._queue and self._current is None and not self._closed and not self._suspended:
            if self._process is None:
                self._start()
            message = self._queue.popleft()
            assert self._process is not None
            self._process.send(encode_frame(message))
            if isinstance(message, Request):
                self._current, self._stop_s = message, None
                self._clock = _Stopwatch()
                if self._process.ready:
                    self._clock.start()
            elif isinstance(message, LoadStatistics):
                self._kept[message.variant, message.sampling_size] = message
            elif isinstance(message, UseOrder):
                self._kept[UseOrder] = message
        if self._process is not None:
            self._process.flush()

    def _take(self, messages: Sequence[Any]) -> None:
        for message in messages:
            if isinstance(message, Ready):
                assert self._process is not None
                self._process.ready = True
                if self._current is not None and not self._suspended:
                    self._clock.start()
            elif self._current is not None and isinstance(message, Result):
                self._current = None
                self._answered.append(message)
        if messages or time.monotonic() - self._collected > _OUTPUT_EVERY_S:
            self._collect_output()

    def _watch(self) -> None:
        """Deadline and memory limit of the request that is being worked on."""
        request = self._current
        if request is None or self._suspended:
            return
        if self._stop_s is not None and self._clock.seconds() > self._stop_s:
            self._end("cancelled", "cancelled by the master")
            return
        if request.deadline_s is not None and self._clock.seconds() > request.deadline_s:
            doing = f"{DOING[type(request.body)]} was not done after {request.deadline_s:g} s"
            self._end("deadline", f"{doing}; raise tuning.limits.deadline to allow more", request.deadline_s)
            return
        if self._process is not None and not self._process.ready and self._clock.elapsed() > _READY_S:
            self._end("deadline", f"not ready for work after {_READY_S:g} s")
            return
        now = time.monotonic()
        if self._memory_limit is not None and now - self._memory_checked >= _MEMORY_EVERY_S:
            self._memory_checked = now
            assert self._process is not None
            resident = self._process.resident_bytes()
            if resident > self._memory_limit:
                why = f"used {resident / 2**20:.0f} MiB of {self._memory_limit / 2**20:.0f} MiB allowed"
                self._end("memory", why, self._memory_limit)

    def _end(self, kind: FailureKind, why: str, limit: float | None = None) -> None:
        assert self._process is not None
        self._process.end()
        self._bury(kind, why, limit)

    def _bury(self, kind: FailureKind, why: str, limit: float | None = None) -> None:
        """The child is dead: its request has failed; there is no new child before there is work for it."""
        assert self._process is not None
        process, request = self._process, self._current
        process.end()  # what it left behind in its group
        cause = why or process.cause_of_death()
        self._forget()
        self._current = None
        if request is not None:
            message = f"child process of worker {self._rank} on {self._host}: {cause}"
            self._answer(request, Failure(kind, message, process.output.tail(), limit=limit), self._clock.elapsed())

    def _forget(self) -> None:
        if self._process is not None:
            self._collect_output()
            self._process.release()
            self._process = None

    def _answer(self, request: Request, body: Failure, worked_s: float) -> None:
        end = time.monotonic() - self._epoch
        start = end - worked_s
        self._answered.append(Result(request.id, request.attempt, self._rank, body, request.run, start, end))

    def _collect_output(self) -> None:
        self._collected = time.monotonic()
        if self._process is not None:
            self._printed += self._process.output.collect()
            del self._printed[:-_OUTPUT_KEPT]  # where nobody takes it


class _Stopwatch:
    """Seconds of work, without the time in which the child was held."""

    def __init__(self) -> None:
        self._created = time.monotonic()
        self._worked = 0.0
        self._since: float | None = None

    def start(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        if self._since is not None:
            self._worked += time.monotonic() - self._since
            self._since = None

    def seconds(self) -> float:
        return self._worked + (0.0 if self._since is None else time.monotonic() - self._since)

    def elapsed(self) -> float:
        return time.monotonic() - self._created
