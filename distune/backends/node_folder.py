"""What the processes of one user share on a node: folders that go with the last who uses them.

Who uses one holds a shared lock on a file in it, which the system takes back from a process that dies. Who leaves
removes every folder that nobody uses any longer, and so does who comes: that of a killed process, too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from distune.errors import ModelError

_PATIENCE_S = 5.0
"""Longest wait where one can do without: who holds the lock, which is for an instant, may have been stopped then."""

_LOCK = "lock"
_TURN = "turn"
_GONE = ".gone"

_LOOK_S = 0.002

_busy: set[int] = set()
"""Threads of this process that hold the lock of the shared folder, or wait for it."""


def shared_folder() -> Path:
    """Where all of them are, on this node: ``TMPDIR`` may be the same one on several."""
    return Path(tempfile.gettempdir()) / f"distune-shared-{os.getuid()}-{os.uname().nodename}"


def join(name: str, patience_s: float | None = _PATIENCE_S) -> tuple[Path, int]:
    """Use the folder of that name, made where nobody else uses it; with what ``leave`` takes.

    Args:
        patience_s: Longest wait for others who come or leave; ``None`` is as long as it takes.

    Raises:
        ModelError: The shared folder belongs to somebody else.
        OSError: It cannot be written, or (``TimeoutError``) somebody keeps it locked.
    """
    with _alone(shared_folder(), patience_s) as parent:
        gone = _put_aside_unused(parent)
        folder = parent / name
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
    _remove(gone)
    return folder, lock


def leave(folder: Path, lock: int) -> None:
    """Use it no longer. What cannot be removed now is removed by whoever comes or leaves next."""
    os.close(lock)
    _tidy(folder.parent)


def remove_unused() -> None:
    """Remove what killed processes have left, as far as that is possible now; for whoever has killed them."""
    _tidy(shared_folder())


@contextmanager
def turn(folder: Path) -> Iterator[FileIO]:
    """Nobody else who uses ``folder`` is between here and the end; a process that dies gives its turn back.

    Yields:
        A file that is empty at first; who has the turn may keep in it what the next one is to know. What is written
        is there at once, also for those who come after a process that was killed.
    """
    with open(os.open(folder / _TURN, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _tidy(parent: Path) -> None:
    if threading.get_ident() in _busy:  # called by a finalizer, which may run at any time: in here, too
        return
    with suppress(OSError, ModelError):
        if parent.is_dir():
            with _alone(parent, _PATIENCE_S):
                gone = _put_aside_unused(parent)
            _remove(gone)
            with _alone(parent, _PATIENCE_S):  # or who comes at that moment could find nothing to come to
                parent.rmdir()  # fails where others are in it


def _put_aside_unused(parent: Path) -> list[Path]:
    """Give folders that nobody uses another name, so that they can be removed when ``parent`` is no longer locked."""
    return [
        folder if folder.suffix == _GONE else folder.rename(folder.with_name(f"{uuid.uuid4().hex}{_GONE}"))
        for folder in list(parent.iterdir())
        if folder.suffix == _GONE or not _is_used(folder)
    ]


def _is_used(folder: Path) -> bool:
    """Whether any process does."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # who made it was killed before it was complete: that happens under the parent's lock
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # another process may be about the same one


@contextmanager
def _alone(parent: Path, patience_s: float | None) -> Iterator[Path]:
    """The folder, made where it is missing; nobody else comes or leaves meanwhile.

    Raises:
        ModelError: It belongs to somebody else.
        TimeoutError: Somebody kept it locked.
    """
    _busy.add(threading.get_ident())
    try:
        while True:
            descriptor = _opened(parent)
            try:
                _lock(descriptor, patience_s, parent)
                if _is_at(parent, descriptor):  # not removed while we waited
                    yield parent
                    return
            finally:
                os.close(descriptor)
    finally:
        _busy.discard(threading.get_ident())


def _opened(parent: Path) -> int:
    while True:
        with suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # who left last has removed it in between
            status = parent.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise ModelError(f"{parent} belongs to somebody else; remove it or set TMPDIR to a folder of your own")
            return os.open(parent, os.O_RDONLY | os.O_NOFOLLOW)


def _is_at(parent: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(parent.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
        time.sleep(_LOOK_S)  # polled, since flock has no timeout
