"""Runs a runner on behalf of a worker: what is the same in a child process and in the rank itself.

A *runner* does the work of one worker. It is named (``module:name``) and built where it works, so that the job's heavy
imports happen in the child and tests and benchmarks can bring small runners of their own.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from distune.config.imports import import_object
from distune.data.user_code import user_traceback
from distune.errors import UsageError
from distune.trial.messages import Broadcast, Failure, Request, Result

DEFAULT_RUNNER = "distune.trial.runner:Runner"


class Runner(Protocol):
    """Does the work of one worker; built as ``factory(job, host, rank)``."""

    def answer(self, request: Request) -> Result:
        """Do what ``request`` asks. Expected not to raise: what fails is a ``Failure`` body."""

    def receive(self, broadcast: Broadcast) -> None:
        """Take note of a broadcast."""

    def close(self) -> None:
        """Free what the runner holds."""


@runtime_checkable
class StoppableRunner(Runner, Protocol):
    """One that can end a request before it is done, and lives on."""

    def stop_where(self, is_unwanted: Callable[[], bool]) -> None:
        """Ask from time to time; answer a request with a ``Failure`` of kind ``cancelled`` where it is unwanted."""


class RunnerHost:
    """One runner, built at once; whatever goes wrong in it becomes a ``Failure`` of the requests that meet it.

    Args:
        load_job: Gives the job; called once, here, so that a job that cannot be loaded is a failure as well.
        factory: Dotted name of the runner's class.
        host: Name of the node.
        rank: The worker's rank.
        epoch: ``time.monotonic()`` of this node at the start of the run; times in results count from it.
        is_stopped: Whether the request of that id is wanted no longer.
    """

    def __init__(
        self,
        load_job: Callable[[], Any],
        factory: str,
        host: str,
        rank: int,
        epoch: float,
        is_stopped: Callable[[int], bool] = lambda request_id: False,
    ) -> None:
        self._host = host
        self._rank = rank
        self._epoch = epoch
        self._runner: Runner | None = None
        self._failure: Failure | None = None
        self._current = 0
        try:
            self._runner = import_object(factory, "runner")(load_job(), host, rank)
            if isinstance(self._runner, StoppableRunner):
                self._runner.stop_where(lambda: is_stopped(self._current))
        except (Exception, SystemExit) as error:
            self._failure = self._failed("could not be set up", error)

    def answer(self, request: Request) -> Result:
        """The answer to ``request``; never raises."""
        start = time.monotonic() - self._epoch
        self._current = request.id
        failure = self._failure
        if self._runner is None or failure is not None:
            result = Result(request.id, request.attempt, self._rank, failure or Failure("error", "no runner"))
        else:
            try:
                result = self._runner.answer(request)
            except (Exception, SystemExit) as error:
                result = Result(request.id, request.attempt, self._rank, self._failed("failed", error))
        return replace(
            result,
            request_id=request.id,
            attempt=request.attempt,
            rank=self._rank,
            run=request.run,
            start_s=start,
            end_s=time.monotonic() - self._epoch,
        )

    def receive(self, broadcast: Broadcast) -> None:
        """Pass ``broadcast`` on. If the runner cannot take it, every later request says so."""
        if self._runner is None or self._failure is not None:
            return
        try:
            self._runner.receive(broadcast)
        except (Exception, SystemExit) as error:
            self._failure = self._failed(f"could not take {type(broadcast).__name__}", error)

    def close(self) -> None:
        """Close the runner."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _failed(self, what: str, error: BaseException) -> Failure:
        where = f"worker {self._rank} on {self._host} {what}"
        name = type(error).__name__
        detail = "".join(traceback.format_exception(error)).rstrip()
        if isinstance(error, UsageError):
            return Failure("user_error", f"{where}: {error}", detail, name, usage=True)
        if isinstance(error, SystemExit):
            return Failure("user_error", f"{where}: {name}: {error}", user_traceback(error), name)
        return Failure("error", f"{where}: {name}: {error}", detail, name)
