"""Files of weights that the processes of a node share: written by the first, mapped by all, removed by the last.

They are in one folder per user. Each process that uses a file holds a shared lock on it; who lets go last removes it,
and what killed processes have left is removed by whoever writes next. All that happens under the folder's own lock.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from distune.backends.onnxruntime.node_folder import is_last, locked_folder
from distune.errors import ModelError

SUFFIX = ".weights"


class WeightFile:
    """One open and mapped file; several light models of this process may refer to it.

    Attributes:
        users: How many light models do.
        offsets: Where a shared weight begins, by the digest of its bytes.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.users = 0
        self.offsets: dict[str, int] = {}
        self.content = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))


open_files: dict[str, WeightFile] = {}
"""Those of this process by name, which is what tensors give as their location."""


_turn = threading.RLock()
_is_busy = False


def folder_path() -> Path:
    """Where the files are."""
    return Path(tempfile.gettempdir()) / f"distune-weights-{os.getuid()}"


def is_ours(name: str) -> bool:
    """Whether a file of that name is one of this module's, not of the user's."""
    return name.endswith(SUFFIX)


def opened(name: str, write: Callable[[BinaryIO], None]) -> WeightFile:
    """The file of that name; ``write`` fills it where no process of this node has it yet. To be called ``undisturbed``.

    Raises:
        ModelError: There is no room, or the folder is not ours.
    """
    if name in open_files:
        return open_files[name]
    try:
        with locked_folder(folder_path()) as folder:
            _remove_abandoned(folder)
            path = folder / name
            if not path.exists():
                new = path.with_suffix(".new")
                with new.open("wb") as file:
                    write(file)
                new.rename(path)
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        raise ModelError(
            f"cannot keep weights in {folder_path()} ({error.strerror or error}): the ranks of a node share them "
            "there; make room, or set TMPDIR to a folder with room for the model"
        ) from error
    open_files[name] = WeightFile(path, descriptor)
    return open_files[name]


@contextmanager
def undisturbed() -> Iterator[None]:
    """No file is closed inside; afterwards those that nothing refers to are.

    Light models are finalized at any time and in any thread, also while this module holds the folder's lock.
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


def release(names: Sequence[str]) -> None:
    """One light model fewer refers to each of these files."""
    with _turn:
        for name in names:
            open_files[name].users -= 1
        if not _is_busy:
            with undisturbed():
                pass


def _close_unused() -> None:
    """Close files that nothing refers to, and remove those that no other process has open."""
    while unused := [name for name, file in open_files.items() if not file.users and is_ours(name)]:
        with locked_folder(folder_path()) as folder:
            for name in unused:
                file = open_files.pop(name)
                _remove_unless_used(file.path, file.descriptor)
                os.close(file.descriptor)  # what is mapped stays mapped as long as somebody looks at it
            if not any(folder.iterdir()):
                folder.rmdir()


def _remove_abandoned(folder: Path) -> None:
    """Files of processes that were killed."""
    for path in folder.iterdir():
        if path.suffix == ".new":
            path.unlink()
        elif path.name not in open_files:
            descriptor = os.open(path, os.O_RDONLY)
            _remove_unless_used(path, descriptor)
            os.close(descriptor)


def _remove_unless_used(path: Path, descriptor: int) -> None:
    if is_last(descriptor):
        path.unlink(missing_ok=True)
