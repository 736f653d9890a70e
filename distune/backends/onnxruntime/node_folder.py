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
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distune.errors import ModelError

_LOCK = "lock"
_GONE = ".gone"

_PATIENCE_S = 5.0
_LOOK_S = 0.002


def prefix_folder() -> Path:
    """Where folders of tensors are that trials share. ``TMPDIR`` may be the same one on several nodes."""
    return Path(tempfile.gettempdir()) / f"distune-prefix-{os.getuid()}-{os.uname().nodename}"


def join(parent: Path, name: str) -> tuple[Path, int]:
    """Use the folder of that name in ``parent``, made where nobody else uses it; with what ``leave`` takes.

    Raises:
        ModelError: ``parent`` belongs to somebody else.
        OSError: It cannot be written, or somebody keeps it locked.
    """
    with locked_folder(parent, _PATIENCE_S):
        gone = _put_aside_unused(parent)
        folder = parent / name
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
    _remove(gone)
    return folder, lock


def leave(folder: Path, lock: int) -> None:
    """Use it no longer. What cannot be removed now is removed by whoever comes next."""
    with suppress(OSError, ModelError):
        with locked_folder(folder.parent, _PATIENCE_S):
            gone = [_put_aside(folder)] if is_last(lock) else []
        _remove(gone)
    os.close(lock)
    _remove_empty(folder.parent)


def remove_unused(parent: Path) -> None:
    """What killed processes have left in ``parent``; for whoever has killed them."""
    if parent.is_dir():
        with locked_folder(parent, _PATIENCE_S):
            gone = _put_aside_unused(parent)
        _remove(gone)
        _remove_empty(parent)


def _put_aside_unused(parent: Path) -> list[Path]:
    """Give folders that nobody uses another name, so that they can be removed when ``parent`` is no longer locked."""
    return [_put_aside(folder) for folder in list(parent.iterdir()) if folder.suffix == _GONE or not _is_used(folder)]


def _put_aside(folder: Path) -> Path:
    return folder.rename(folder.with_name(f"{uuid.uuid4().hex}{_GONE}"))


def _is_used(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # who made it was killed before it was complete: that happens under the parent's lock
        return False
    try:
        return not is_last(lock)
    finally:
        os.close(lock)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_empty(parent: Path) -> None:
    with suppress(OSError):  # others are in it
        parent.rmdir()


def is_last(descriptor: int) -> bool:
    """Whether no other process holds a lock on that open file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked_folder(folder: Path, patience_s: float | None = None) -> Iterator[Path]:
    """The folder, made where it is missing; no other process opens, writes or removes files in it meanwhile.

    Args:
        patience_s: Longest wait: who holds the lock may be stopped. Without it, as long as it takes.

    Raises:
        ModelError: It belongs to somebody else.
        TimeoutError: Somebody kept it locked.
    """
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise ModelError(f"{folder} belongs to somebody else; remove it or set TMPDIR to a folder of your own")
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, patience_s, folder)
            if folder.exists() and folder.stat().st_ino == status.st_ino:  # not removed while we waited
                yield folder
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, patience_s: float | None, folder: Path) -> None:
    if patience_s is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(f"{folder} was locked by another process for {patience_s:g} s") from None
        time.sleep(_LOOK_S)
