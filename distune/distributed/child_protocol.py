"""What an agent and its child process say to each other, besides requests, broadcasts and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distune.distributed.chaos import Chaos
from distune.distributed.frames import frame_of

_STOP = b"stop "


@dataclass(frozen=True)
class Setup:
    """First message to a child.

    Attributes:
        job: The packed job (``worker.pack_job``).
        runner: Dotted name of the runner's class.
        epoch: ``time.monotonic()`` at the start of the run; the clock is the same for all processes of a node.
        python_path: The parent's ``sys.path``, so that the user's modules import the same way.
        environment: Variables to set back to what the parent has, ``None`` to remove them: the child was started with
            others.
        chaos: What is to go wrong on purpose.
        memory_limit: Bytes that the child may keep resident; ``None`` means no limit.
        paths: Where to read files that the node lacks, by the path that the job names.
    """

    job: bytes
    runner: str
    host: str
    rank: int
    epoch: float
    python_path: tuple[str, ...]
    environment: tuple[tuple[str, str | None], ...] = ()
    chaos: Chaos | None = None
    memory_limit: int | None = None
    paths: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """The child has built its runner: deadlines count from here."""


@dataclass(frozen=True)
class Close:
    """End in peace."""


def encode_stop(request_id: int) -> bytes:
    """A frame that asks to end a request as soon as that can be.

    No pickle, so that the child's reading thread understands it while the working thread works.
    """
    return frame_of(_STOP + str(request_id).encode())


def decode_stop(body: bytes) -> int | None:
    """Inverse of ``encode_stop``; ``None`` for any other frame."""
    return int(body[len(_STOP) :]) if body.startswith(_STOP) else None
