"""What rank 0 and the agents on the other ranks say to each other. All of it travels pickled, see ``mpi_link``."""

from __future__ import annotations

from dataclasses import dataclass, field

from distune.distributed.chaos import Chaos
from distune.distributed.files import FileEntry
from distune.distributed.placement import Placement
from distune.distributed.transport import WorkerInfo
from distune.trial.messages import Broadcast, Request, Result

# ---------------------------------------------------------------------------------------------------- agent -> rank 0


@dataclass(frozen=True)
class Join:
    """An agent is there. ``versions`` must be equal everywhere: pickles travel between the ranks."""

    info: WorkerInfo
    versions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Lacks:
    """Answer to ``Manifest``: paths of the files to be sent, and what is wrong that sending files cannot mend."""

    paths: tuple[str, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stored:
    """The files that the node lacked are there: where this rank can read each, by the path that the job names."""

    paths: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A request was answered."""

    result: Result


@dataclass(frozen=True)
class Output:
    """What the worker printed."""

    data: bytes


@dataclass(frozen=True)
class Alive:
    """A sign of life, where there has been nothing else to say."""


@dataclass(frozen=True)
class Bye:
    """Last message of an agent."""


# ---------------------------------------------------------------------------------------------------- rank 0 -> agent


@dataclass(frozen=True)
class Manifest:
    """To one agent of each other node: the files and folders that the job names."""

    files: tuple[FileEntry, ...]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Chunk:
    """The next bytes of a file; an empty chunk ends it."""

    path: str
    data: bytes


@dataclass(frozen=True)
class Adopt:
    """To the other agents of that node: what the one has ``Stored``. Answered with ``Stored``, too."""

    paths: dict[str, str]


@dataclass(frozen=True)
class Start:
    """Begin to work.

    Attributes:
        job: The packed job.
        now: Seconds since the run began, at the time of sending.
        in_process: Run trials in the rank itself.
        placement: Cores and threads of this rank.
        memory_limit: Bytes that the child of this rank may keep resident.
        chaos: What is to go wrong on purpose.
    """

    job: bytes
    runner: str
    now: float
    in_process: bool
    placement: Placement
    memory_limit: int | None = None
    chaos: Chaos | None = None


@dataclass(frozen=True)
class Work:
    """A request or broadcast for the worker."""

    message: Request | Broadcast


@dataclass(frozen=True)
class Cancel:
    """Give up a request."""

    request_id: int


@dataclass(frozen=True)
class Hold:
    """Hold the worker still."""


@dataclass(frozen=True)
class Release:
    """Let the worker go on."""


@dataclass(frozen=True)
class Leave:
    """End, with this exit code."""

    exit_code: int
