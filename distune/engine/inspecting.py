"""Has every worker look at the model and the data, before anything is built on what rank 0 sees."""

from __future__ import annotations

from typing import Protocol

from distune.engine.dispatcher import Dispatcher
from distune.engine.failures import raise_failure
from distune.errors import TransportError, UsageError
from distune.trial.messages import Failure, Inspect, Inspection


class Warn(Protocol):
    """Tells the user; of which worker, where it is one's."""

    def __call__(self, message: str, rank: int | None = None, host: str = "") -> None: ...


def inspect_everywhere(dispatcher: Dispatcher, warn: Warn) -> Inspection:
    """Let every worker load the model and look at the data; the answer of the lowest rank counts.

    Raises:
        UsageError: Workers see unlike models or data, or what they see is of no use.
        TransportError: No worker is left.
    """
    found: Inspection | None = None
    for outcome in dispatcher.wait([dispatcher.submit(Inspect(), rank=worker.rank) for worker in dispatcher.workers]):
        body = outcome.body
        if isinstance(body, Failure) and body.kind == "lost":
            continue  # the others go on; the dispatcher has warned of it
        if isinstance(body, Failure):
            raise_failure(body)
        if not isinstance(body, Inspection):
            raise TransportError(f"worker {outcome.rank} answered Inspect with {type(body).__name__}")
        if found is None:
            found = body
            for warning in body.warnings:
                warn(warning)
        else:
            _compare(found, body, outcome.rank, outcome.host, warn)
    if found is None:
        raise TransportError("no worker is left; run the same command again to resume")
    return found


def _compare(first: Inspection, other: Inspection, rank: int, host: str, warn: Warn) -> None:
    if other.digest != first.digest:
        raise UsageError(
            f"rank {rank} on {host} sees another model or other data than rank 0; every node must read the same files"
        )
    unlike = [name for name, version in first.versions.items() if other.versions.get(name) != version]
    if unlike:
        warn(f"versions differ from rank 0's: {', '.join(unlike)}; its verdicts may differ", rank, host)


__all__ = ["inspect_everywhere"]
