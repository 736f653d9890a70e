"""How requests and results travel: the contract that every transport keeps.

A transport knows workers by rank and hands bodies over; it never looks inside them. It promises:

* a request that was sent is answered by exactly one ``ResultArrived``, or its worker by one ``WorkerLost``;
* what is sent to one worker (requests and broadcasts) is handled by it in the order of sending;
* ``poll`` returns as soon as there is something to return, and sleeps meanwhile (no spinning);
* a child process that dies is an answer (``Failure``), not a lost worker.

Implementations: ``local`` (workers of this process alone), ``mpi`` and ``simulated`` (virtual clock).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from distune.distributed.resources import Resources
from distune.trial.messages import Broadcast, Request, Result


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker runs.

    Attributes:
        rank: Its rank; 0 is the worker that the master hosts.
        host: Node name; workers of one host share cores, so latency is measured on one of them at a time.
        local_rank: Position among the workers of its host.
        cpu: Processor model.
        isa: Instruction sets that matter to quantized kernels, e.g. ``avx512_vnni``.
        resources: What it may use of its node; ``None`` where it has not said.
    """

    rank: int
    host: str
    local_rank: int = 0
    cpu: str = ""
    isa: tuple[str, ...] = ()
    resources: Resources | None = None


@dataclass(frozen=True)
class ResultArrived:
    """A worker answered."""

    result: Result


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone for good; what it was working on will not be answered."""

    rank: int
    reason: str


Event = ResultArrived | WorkerLost


class Transport(ABC):
    """Connects the master with its workers. Used by one thread."""

    warnings: Sequence[str] = ()
    """What the user should know of how the workers are placed."""

    @property
    @abstractmethod
    def workers(self) -> Sequence[WorkerInfo]:
        """The workers that are alive, by rank."""

    @abstractmethod
    def send(self, rank: int, message: Request | Broadcast) -> None:
        """Hand ``message`` to a worker; returns at once.

        Raises:
            TransportError: ``rank`` is not a living worker.
        """

    @abstractmethod
    def cancel(self, rank: int, request_id: int) -> None:
        """Ask a worker to give up a request. It is answered all the same, in time or with a ``Failure``."""

    def hold(self, rank: int) -> None:
        """Have a worker hold still, in mid-request where it can; what it was doing goes on at ``release``.

        Where a worker cannot be held (``isolation: none``) nothing happens.
        """

    def release(self, rank: int) -> None:
        """Let a held worker go on."""

    @abstractmethod
    def poll(self, timeout: float) -> Sequence[Event]:
        """Events that arrived, waiting up to ``timeout`` seconds for the first one; empty when there was none."""

    @abstractmethod
    def now(self) -> float:
        """Seconds since the run began (virtual ones in the simulator)."""

    @abstractmethod
    def close(self, exit_code: int = 0) -> None:
        """End every worker; under MPI the other ranks leave with ``exit_code``. May be called twice."""
