"""What killed MPI jobs leave behind on a node: shared memory that nobody uses any more, and session folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SEGMENTS = ("sm_segment.*", "vader_segment.*", "mpich_shm_*")
"""Open MPI 5, Open MPI 4, MPICH."""

_SESSIONS = re.compile(r"(?:ompi|prte)\.(\d+)")
"""Folder of an Open MPI 5 ``mpirun``, named after its process id."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder of a job that has gone.

    Attributes:
        bytes: Memory that it holds; 0 for a folder.
    """

    path: Path
    bytes: int


def leftovers(root: Path = Path("/")) -> list[Leftover]:
    """Those of this user on this node, by path.

    A segment that any process has mapped belongs to a living job. Only files of this user are looked at: they are
    readable to nobody else, and so are mapped by nobody whose memory map could not be read here.

    Args:
        root: Below it are ``/dev/shm``, ``/proc`` and ``/tmp``.
    """
    mapped = _mapped(root)
    found = []
    for pattern in _SEGMENTS:
        for path in (root / "dev/shm").glob(pattern):
            size = _own_size(path)
            if size is not None and path.name not in mapped:
                found.append(Leftover(path, size))
    for path in (root / "tmp").glob("*.*"):
        session = _SESSIONS.fullmatch(path.name)
        if session and path.is_dir() and _own_size(path) is not None and not (root / "proc" / session[1]).exists():
            found.append(Leftover(path, 0))
    return sorted(found, key=lambda left: left.path)


def _mapped(root: Path) -> set[str]:
    """Names of the segments that living processes have mapped."""
    return {match for maps in _maps(root) for match in re.findall(r"/dev/shm/(\S+)$", maps, re.MULTILINE)}


def _maps(root: Path) -> Iterator[str]:
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            yield (folder / "maps").read_text(errors="replace")
        except OSError:  # it has ended, or is somebody else's
            continue


def _own_size(path: Path) -> int | None:
    """Bytes of a file of this user; ``None`` where it is another's or has gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if status.st_uid == os.geteuid() else None
