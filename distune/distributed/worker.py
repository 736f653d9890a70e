"""The worker as its agent sees it: messages in, results out, whether it works in a child or in the rank itself."""

from __future__ import annotations

import pickle
import select
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace

from distune.config.job import TuningJob
from distune.distributed.files import rewrite_paths
from distune.distributed.runner_host import DEFAULT_RUNNER, RunnerHost
from distune.errors import UsageError
from distune.trial.messages import Broadcast, Failure, Request, Result


class Worker(ABC):
    """Handles messages in the order of sending and answers every request once. Used by one thread."""

    @abstractmethod
    def send(self, message: Request | Broadcast) -> None:
        """Hand over ``message``; returns at once."""

    @abstractmethod
    def receive(self) -> list[Result]:
        """Results that are there by now. Must be called regularly: it also sees to deadlines and dead children."""

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Give up a request; it is answered with a ``Failure`` of kind ``cancelled`` unless its answer is there."""

    @abstractmethod
    def readable(self) -> Sequence[int]:
        """File descriptors that become readable when ``receive`` should be called."""

    def writable(self) -> Sequence[int]:
        """File descriptors that, when writable, let ``receive`` pass on what is still to be written."""
        return ()

    def due(self) -> float:
        """Seconds until ``receive`` should be called whether or not a descriptor is ready; 0 means now."""
        return float("inf")

    def suspend(self) -> None:
        """Hold still until ``resume``, in mid-request too where that is possible; does not count against deadlines."""

    def resume(self) -> None:
        """Go on."""

    def take_output(self) -> bytes:
        """What the worker printed since the last call (standard output and error)."""
        return b""

    @abstractmethod
    def close(self) -> None:
        """End the worker and everything it started. May be called twice."""


def wait_for(workers: Iterable[Worker], timeout: float) -> None:
    """Sleep until one of ``workers`` wants ``receive`` to be called, at most ``timeout`` seconds."""
    read: list[int] = []
    write: list[int] = []
    for worker in workers:
        read += worker.readable()
        write += worker.writable()
        timeout = min(timeout, worker.due())
    if timeout <= 0:
        return
    poller = select.poll()  # not select(): descriptors above 1023 are common with many children
    for descriptor in read:
        poller.register(descriptor, select.POLLIN)
    for descriptor in write:
        poller.register(descriptor, select.POLLOUT | (select.POLLIN if descriptor in read else 0))
    if timeout >= 1e-3 and timeout != float("inf"):
        poller.poll(timeout * 1e3)
    elif timeout == float("inf"):
        poller.poll()
    else:
        # poll() counts in milliseconds; select() can sleep for microseconds
        try:
            select.select(read, write, [], timeout)
        except ValueError:  # a descriptor above 1023
            poller.poll(1)


class InlineWorker(Worker):
    """Does the work in this very process, one request per ``receive`` (``isolation: none``).

    Nothing protects the rank from what a trial does, ``cancel`` reaches only requests that have not begun, and while a
    request is worked on the rank does nothing else.
    """

    def __init__(
        self, job: TuningJob, host: str, rank: int, *, runner: str = DEFAULT_RUNNER, epoch: float | None = None
    ) -> None:
        self._host = host
        self._rank = rank
        self._epoch = time.monotonic() if epoch is None else epoch
        self._queue: deque[Request | Broadcast] = deque()
        self._answered: list[Result] = []
        self._make: Callable[[], RunnerHost] = lambda: RunnerHost(lambda: job, runner, host, rank, self._epoch)
        self._runner: RunnerHost | None = None

    def send(self, message: Request | Broadcast) -> None:
        self._queue.append(message)

    def receive(self) -> list[Result]:
        results, self._answered = self._answered, []
        while self._queue and not results:
            # Built with the first message, not before: a transport is then complete before anything can go wrong.
            self._runner = self._runner or self._make()
            message = self._queue.popleft()
            if isinstance(message, Request):
                results.append(self._runner.answer(message))
            else:
                self._runner.receive(message)
        return results

    def cancel(self, request_id: int) -> None:
        for message in list(self._queue):
            if isinstance(message, Request) and message.id == request_id:
                self._queue.remove(message)
                now = time.monotonic() - self._epoch
                body = Failure("cancelled", f"request {request_id} was cancelled before worker {self._rank} began it")
                self._answered.append(Result(request_id, message.attempt, self._rank, body, message.run, now, now))

    def readable(self) -> Sequence[int]:
        return ()

    def due(self) -> float:
        return 0.0 if self._queue or self._answered else float("inf")

    def close(self) -> None:
        self._queue.clear()
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def pack_job(job: TuningJob) -> bytes:
    """``job`` as bytes for another process: by value where it holds objects of the user's script.

    Raises:
        UsageError: A live object in it cannot be pickled; names it.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(job, protocol=5))
    except Exception as error:
        culprit = _cannot_travel(job, "")
        where = f"{culprit[0]} ({culprit[1]!r:.80})" if culprit else "the job"
        raise UsageError(
            f"{where} cannot travel to the process that runs the trials: {type(error).__name__}: {error}; "
            "make it a function or class at the top level of a module, or run trials in the rank itself with "
            "isolation: none"
        ) from error


def unpack_job(packed: bytes, memory_limit: int | None = None, paths: Mapping[str, str] | None = None) -> TuningJob:
    """The job of ``pack_job``, as it is for one rank.

    Args:
        packed: The job as the master has it.
        memory_limit: What the rank may take of its node's memory (``limits.memory_limits``).
        paths: Where the rank finds files that its node lacks, by the path that the job names.
    """
    job: TuningJob = pickle.loads(packed)
    if paths:
        job = rewrite_paths(job, paths)
    return job if memory_limit is None else replace(job, limits=replace(job.limits, memory_bytes=memory_limit))


def _cannot_travel(value: object, path: str) -> tuple[str, object] | None:
    """Path and value of the innermost part of ``value`` that cannot be pickled."""
    import cloudpickle

    try:
        cloudpickle.dumps(value, protocol=5)
        return None
    except Exception:  # whatever a user's __reduce__ raises: the question is only which part does
        pass
    parts: Iterable[tuple[str, object]] = ()
    if is_dataclass(value):
        parts = ((f"{path}.{field.name}".lstrip("."), getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, Mapping):
        parts = ((f"{path}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{path}[{index}]", part) for index, part in enumerate(value))
    for name, part in parts:
        found = _cannot_travel(part, name)
        if found is not None:
            return found
    return path, value
