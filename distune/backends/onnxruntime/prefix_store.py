"""Tensors that the ranks of a node compute once: whoever comes first to a batch does it, and all map what it wrote.

The files are in a folder that is named by what was computed, and which goes with the last who uses it (see
``node_folder``). A batch that somebody has begun with is never waited for: its tensors are simply not there yet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.base import Feed
from distune.backends.onnxruntime.node_folder import join, leave, prefix_folder

_CUTS = "cuts.json"


class PrefixStore:
    """One folder of this node, for one base model.

    Args:
        name: What tells it from every other one.
        limit: Bytes that the tensors may take, of all ranks together.

    Raises:
        ModelError: The folder belongs to somebody else.
        OSError: It cannot be written.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._limit = limit
        self._folder, lock = join(prefix_folder(), name)
        self._let_go = weakref.finalize(self, leave, self._folder, lock)

    def agree(self, choose: Callable[[], Sequence[str]]) -> tuple[str, ...]:
        """The names that the first process of the node has chosen; the others wait for it."""
        descriptor = os.open(self._folder / _CUTS, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back by a process that dies, too
            text = file.read()
            if not text:
                text = json.dumps(list(choose()))
                file.write(text)
        return tuple(json.loads(text))

    def read(self, batch: str, names: Sequence[str]) -> Mapping[str, NDArray[Any]] | None:
        """The tensors of a batch, mapped; ``None`` where they are not there, or not yet."""
        folder = self._folder / batch
        if not folder.is_dir():
            return None
        return {name: np.load(folder / f"{at}.npy", mmap_mode="r") for at, name in enumerate(names)}

    def claim(self, batch: str) -> bool:
        """Whether it is for this process to compute the tensors of a batch."""
        try:
            (self._folder / f"{batch}.begun").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def write(self, batch: str, tensors: Mapping[str, NDArray[Any]]) -> bool:
        """Share the tensors of a batch that was claimed; ``False`` where there is no room for them."""
        size = sum(array.nbytes for array in tensors.values())
        if size + sum(path.stat().st_size for path in self._folder.glob("*/*.npy")) > self._limit:
            return False
        new = self._folder / f"{batch}.new"
        try:
            new.mkdir()
            for at, array in enumerate(tensors.values()):
                np.save(new / f"{at}.npy", array)
            new.rename(self._folder / batch)
        except OSError:  # a full disk
            shutil.rmtree(new, ignore_errors=True)
            return False
        return True

    def close(self) -> None:
        """Let go; arrays that were read stay. May be called twice."""
        self._let_go()


def batch_name(feed: Feed) -> str:
    """What tells the data of a batch from every other one."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(feed):
        digest.update(f"{name}:{feed[name].dtype}:{feed[name].shape};".encode())
        digest.update(np.ascontiguousarray(feed[name]).data)
    return digest.hexdigest()
