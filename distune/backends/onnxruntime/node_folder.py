"""Folders of this node in which the processes of one user keep what they share.

Who uses one holds a shared lock on a file in it, which the system takes back from a process that dies. Who leaves last
removes the folder, and what killed processes have left is removed by whoever comes next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distune.errors import ModelError

_LOCK = "lock"


def prefix_folder() -> Path:
    """Where folders of tensors are that trials share."""
    return Path(tempfile.gettempdir()) / f"distune-prefix-{os.getuid()}"


def join(parent: Path, name: str) -> tuple[Path, int]:
    """Use the folder of that name in ``parent``, made where it is missing; with what ``leave`` takes.

    Raises:
        ModelError: ``parent`` belongs to somebody else.
        OSError: It cannot be written.
    """
    with locked_folder(parent):
        _remove_unused(parent, name)
        folder = parent / name
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
    return folder, lock


def leave(folder: Path, lock: int) -> None:
    """Use it no longer."""
    with locked_folder(folder.parent) as parent:
        _remove_unless_used(folder, lock)
        os.close(lock)
        with suppress(OSError):  # others are in it
            parent.rmdir()


def remove_unused(parent: Path) -> None:
    """What killed processes have left in ``parent``; for whoever has killed them."""
    if parent.is_dir():
        with locked_folder(parent):
            _remove_unused(parent)
            with suppress(OSError):
                parent.rmdir()


def _remove_unused(parent: Path, but: str = "") -> None:
    for folder in parent.iterdir():
        if folder.name != but and (folder / _LOCK).exists():
            lock = os.open(folder / _LOCK, os.O_RDWR)
            _remove_unless_used(folder, lock)
            os.close(lock)


def _remove_unless_used(folder: Path, lock: int) -> None:
    if is_last(lock):
        shutil.rmtree(folder, ignore_errors=True)


def is_last(descriptor: int) -> bool:
    """Whether no other process holds a lock on that open file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """The folder, made where it is missing; no other process opens, writes or removes files in it meanwhile.

    Raises:
        ModelError: It belongs to somebody else.
    """
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise ModelError(f"{folder} belongs to somebody else; remove it or set TMPDIR to a folder of your own")
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists() and folder.stat().st_ino == status.st_ino:  # not removed while we waited
                yield folder
                return
        finally:
            os.close(descriptor)
