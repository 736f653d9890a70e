"""Files of weights that the processes of a node share: written by the first, mapped by all, removed by the last.

Each is in a folder of its own, which goes with the last who uses it (see ``node_folder``).
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from distune.backends.node_folder import join, leave, shared_folder, turn
from distune.errors import ModelError

_FILE = "distune.weights"


class WeightFile:
    """One mapped file; several light models of this process may refer to it.

    Args:
        path: The file.
        location: What tensors that are in it give as their location; of a shared one its path from ``shared_folder()``.
        let_go: Called when no light model of this process refers to it any longer.

    Attributes:
        users: How many light models do.
        offsets: Where a shared weight begins, by the digest of its bytes.
        content: Its bytes, which stay mapped as long as somebody looks at them.
    """

    def __init__(self, path: Path, location: str, let_go: Callable[[], None] = lambda: None) -> None:
        self.location = location
        self.let_go = let_go
        self.users = 0
        self.offsets: dict[str, int] = {}
        self.content = memoryview(b"")
        if path.stat().st_size:  # nothing cannot be mapped
            with path.open("rb") as file:
                self.content = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


open_files: dict[str, WeightFile] = {}
"""Those of this process, by what tensors give as their location."""


_turn = threading.RLock()
_is_busy = False


def is_ours(location: str) -> bool:
    """Whether a file at that location is one of this module's, not of the user's."""
    return location.endswith(f"/{_FILE}")


def opened(name: str, write: Callable[[BinaryIO], None]) -> WeightFile:
    """The file of that name; ``write`` fills it where no process of this node has it yet. To be called ``undisturbed``.

    Raises:
        ModelError: There is no room, or the folder is not ours.
    """
    location = f"{name}/{_FILE}"
    if location not in open_files:
        try:
            open_files[location] = _shared(name, location, write)
        except OSError as error:
            raise ModelError(
                f"cannot keep weights in {shared_folder()} ({error.strerror or error}): the ranks of a node share them "
                "there; make room, or set TMPDIR to a folder with room for the model"
            ) from error
    return open_files[location]


def _shared(name: str, location: str, write: Callable[[BinaryIO], None]) -> WeightFile:
    folder, lock = join(name, patience_s=None)
    try:
        with turn(folder):
            path = folder / _FILE
            if not path.exists():
                new = path.with_suffix(".new")
                with new.open("wb") as file:
                    write(file)
                new.rename(path)
        return WeightFile(path, location, partial(leave, folder, lock))
    except BaseException:
        leave(folder, lock)
        raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """No file is closed inside; afterwards those that nothing refers to are.

    Light models are finalized at any time and in any thread, also between the opening of a file and its first use.
    """
    global _is_busy
    with _turn:
        was_busy, _is_busy = _is_busy, True
        try:
            yield
        finally:
            if not was_busy:
                _close_unused()
            _is_busy = was_busy


def release(locations: Sequence[str]) -> None:
    """One light model fewer refers to each of these files."""
    with _turn:
        for location in locations:
            open_files[location].users -= 1
        if not _is_busy:
            with undisturbed():
                pass


def _close_unused() -> None:
    """Let go of files that nothing refers to."""
    while unused := [name for name, file in open_files.items() if not file.users and is_ours(name)]:
        for name in unused:
            open_files.pop(name).let_go()
