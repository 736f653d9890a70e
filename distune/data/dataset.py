"""Base classes of datasets.

A dataset delivers ``(sample, label)`` by index, always the same for the same index; it does not shuffle, batch or
transform. One whose samples lie in memory as arrays derives from ``ArrayDataset``, and is then batched without any
Python per sample.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.data.batch import Inputs, Labels, arrays_of, take
from distune.errors import DataError

_FULL_DIGEST_BYTES = 256 << 20


class Dataset(ABC):
    """Samples by index."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """``(sample, label)``: an array or Pillow image (or a tuple or mapping of arrays), and its label."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the content, the same on every machine that has the same data."""


class ArrayDataset(Dataset):
    """Samples in memory.

    Attributes:
        inputs: One array, a tuple, or arrays by model input name; axis 0 runs over the samples.
        labels: The same for the labels, or ``None``.
    """

    def __init__(self, inputs: Inputs, labels: Labels) -> None:
        self.inputs = inputs
        self.labels = labels
        lengths = {len(array) for array in (*arrays_of(inputs), *arrays_of(labels))}
        if len(lengths) != 1:
            raise DataError(f"the arrays of a dataset have different numbers of samples: {sorted(lengths)}")
        self._length = lengths.pop()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rows = np.array([index])
        sample, label = take(self.inputs, rows), take(self.labels, rows)
        return _only(sample), _only(label)

    def digest(self) -> str:
        names = repr(list(self.inputs)) if isinstance(self.inputs, dict) else ""
        return hash_arrays((*arrays_of(self.inputs), *arrays_of(self.labels)), names)


def _only(values: Any) -> Any:
    return take(values, 0)  # type: ignore[arg-type]


def hash_arrays(arrays: Iterable[NDArray[Any]], prefix: str = "") -> str:
    """SHA-256 of dtypes, shapes and contents."""
    digest = hashlib.sha256(prefix.encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of relative paths, sizes and contents.

    Of a large collection (above 256 MiB) only every k-th file's content is read, so that looking at ImageNet does
    not take minutes; paths and sizes always count in full.
    """
    digest = hashlib.sha256()
    sized = [(path, path.stat().st_size) for path in files]
    step = max(1, -(-sum(size for _, size in sized) // _FULL_DIGEST_BYTES))
    for number, (path, size) in enumerate(sized):
        digest.update(f"{path.relative_to(root).as_posix()}\0{size}\0".encode())
        if number % step == 0:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def existing(path: str | Path, what: str) -> Path:
    """``path`` as a ``Path`` that exists.

    Raises:
        DataError: It does not.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{what} {found} does not exist")
    return found


def refuse_download(download: bool, dataset: str, files: str) -> None:
    """Refuse ``download: true`` of the 1.x YAML: a tuning run must not depend on somebody's web server."""
    if download:
        raise DataError(f"{dataset}: nothing is downloaded; put {files} under its root and drop 'download: true'")
