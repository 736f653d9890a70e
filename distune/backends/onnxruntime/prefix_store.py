"""Tensors that the ranks of a node compute once: whoever comes first to a batch does it, and all read what it wrote.

The files are in a folder that is named by what was computed, and which goes with the last who uses it (see
``node_folder``). A batch that somebody has begun with is never waited for: its tensors are simply not there yet. What
is read comes out of the system's page cache, which is in memory once a node.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.base import Feed
from distune.backends.node_folder import join, leave, turn

_CUTS = "cuts.json"


class PrefixStore:
    """One folder of this node, for one base model.

    Args:
        name: What tells it from every other one.
        limit: Bytes that the files may take, of all ranks together.

    Raises:
        ModelError: The folder belongs to somebody else.
        OSError: It cannot be written, or a file in it is damaged; any other method may raise it as well.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._limit = limit
        self._folder, lock = join(name)
        self._let_go = weakref.finalize(self, leave, self._folder, lock)

    def agree(self, choose: Callable[[], Sequence[str]]) -> tuple[str, ...]:
        """The names that the first process of the node has chosen; the others wait for it."""
        path = self._folder / _CUTS
        with turn(self._folder) as counter:
            _count(counter, self.size)  # who was killed may have counted what never came
            if path.exists():
                with _understood(path):
                    return tuple(json.loads(path.read_text()))
            chosen = tuple(choose())
            new = path.with_suffix(".new")
            new.write_text(json.dumps(chosen))
            new.rename(path)
        return chosen

    def has(self, batch: str) -> bool:
        """Whether the tensors of a batch are there."""
        return (self._folder / batch).is_dir()

    def read(self, batch: str, at: int) -> NDArray[Any]:
        """One of the tensors of a batch that are there, by its place."""
        path = self._folder / batch / f"{at}.npy"
        with _understood(path):
            found: NDArray[Any] = np.load(path)
        return found

    def claim(self, batch: str) -> bool:
        """Whether it is for this process to compute the tensors of a batch."""
        try:
            (self._folder / f"{batch}.begun").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def write(self, batch: str, tensors: Mapping[str, NDArray[Any]]) -> bool:
        """Share the tensors of a batch that was claimed; ``False`` where there is no room for them."""
        with turn(self._folder) as counter:
            if _counted(counter) + sum(array.nbytes for array in tensors.values()) > self._limit:
                return False
        new = self._folder / f"{batch}.new"
        try:
            new.mkdir()
            for at, array in enumerate(tensors.values()):
                np.save(new / f"{at}.npy", array)
            with turn(self._folder) as counter:
                size = _counted(counter) + _size(new)
                if size > self._limit:
                    return False
                _count(counter, size)  # first: who is killed in between has counted too much, not too little
                new.rename(self._folder / batch)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return True

    @property
    def size(self) -> int:
        """Bytes of the tensors that are there, added up file by file."""
        return sum(_size(entry) for entry in os.scandir(self._folder) if entry.is_dir() and "." not in entry.name)

    def close(self) -> None:
        """Let go. May be called twice."""
        self._let_go()


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """A file that cannot be understood is one that cannot be read."""
    try:
        yield
    except (ValueError, EOFError) as error:
        raise OSError(f"{path} is damaged: {error}") from error


def _size(folder: os.PathLike[str]) -> int:
    return sum(file.stat().st_size for file in os.scandir(folder))


def _counted(counter: FileIO) -> int:
    """The bytes that were counted last, read from the file of the turn."""
    counter.seek(0)
    return int.from_bytes(counter.read(), "little")


def _count(counter: FileIO, size: int) -> None:
    counter.seek(0)
    counter.write(size.to_bytes(8, "little"))


def batch_name(feed: Feed) -> str:
    """What tells the data of a batch from every other one."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(feed):
        digest.update(f"{name}:{feed[name].dtype}:{feed[name].shape};".encode())
        digest.update(np.ascontiguousarray(feed[name]).data)
    return digest.hexdigest()
