"""``fit`` under ``mpirun``: every rank runs the user's script, rank 0 leads, and all come back with the same.

While rank 0 tunes the others are its agents. Then rank 0 sends what came of it, result or error, to each of them.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from distune.errors import DistuneError

if TYPE_CHECKING:
    from distune.config.job import TuningJob
    from distune.distributed.transport import Transport
    from distune.journal.workspace import Workspace

    Connect = Callable[[TuningJob, Workspace], Transport]

T = TypeVar("T")


def lead_or_follow(
    lead: Callable[[Connect], tuple[T, int]], follow: Callable[[], None], for_others: Callable[[T], T]
) -> T:
    """On rank 0 the result of ``lead``, elsewhere what ``for_others`` made of it. Collective over all ranks.

    Args:
        lead: The whole run as rank 0 sees it; gives the result and the exit code for the agents.
        follow: What another rank does before it serves.
        for_others: The part of the result that travels.

    Raises:
        DistuneError: ``lead`` raised it; on every rank.
    """
    from distune.distributed.mpi import run_ranks

    link = _link()
    if link.rank:
        follow()
        run_ranks(lambda connect: 0)
        return cast("T", _received(link))
    found: list[T] = []

    def master(connect: Connect) -> int:
        result, code = lead(connect)
        found.append(result)
        return code

    try:
        run_ranks(master)
    except DistuneError as error:
        _send(link, error)
        raise
    _send(link, for_others(found[0]))
    return found[0]


def _send(link: Any, what: object) -> None:
    for rank in range(1, link.size):
        link.send(rank, what)
    link.drain(60.0)


def _received(link: Any) -> Any:
    from distune.distributed.mpi_link import Backoff, MasterLostError

    backoff = Backoff()
    while True:
        for _, message in link.receive():
            if isinstance(message, DistuneError):
                raise message
            return message
        if 0 in link.lost:
            raise MasterLostError
        time.sleep(backoff.pause(link.sending))


@functools.cache
def _link() -> Any:
    """The link for results, once a process. Collective."""
    from distune.distributed.mpi import connect
    from distune.distributed.mpi_link import MpiLink

    communicator = connect()
    _abort_on_error(communicator)
    return MpiLink(communicator)


def _abort_on_error(communicator: Any) -> None:
    """An error that ends the script on one rank ends the job: else the other ranks would wait for it for ever."""
    from distune.distributed.mpi_link import end_job

    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        before(kind, error, traceback)
        sys.stderr.flush()
        end_job(communicator, error)

    sys.excepthook = hook
