"""MNIST and FashionMNIST from their idx files."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distune.data.dataset import ArrayDataset, existing, refuse_download
from distune.data.registry import dataset_registry
from distune.errors import DataError


@dataset_registry("MNIST")
class MNIST(ArrayDataset):
    """uint8 images [28, 28, 1] and class ids.

    Args:
        root: Folder of the idx files (gzipped or not), or one that holds them as ``raw`` or ``<name>/raw``.
        train: The 60,000 training images instead of the 10,000 test images.
        download: Refused.
    """

    def __init__(self, root: str, train: bool = False, download: bool = False) -> None:
        name = type(self).__name__
        refuse_download(download, name, "the four idx files (*-ubyte or *-ubyte.gz)")
        base = existing(root, f"{name} root")
        stem = "train" if train else "t10k"
        images = _read_idx(_find(base, name, f"{stem}-images", "idx3-ubyte"))
        labels = _read_idx(_find(base, name, f"{stem}-labels", "idx1-ubyte"))
        super().__init__(images[..., np.newaxis], labels.astype(np.int64))


@dataset_registry("FashionMNIST")
class FashionMNIST(MNIST):
    """Fashion-MNIST: the same files and arguments as MNIST."""


def _find(base: Path, name: str, stem: str, kind: str) -> Path:
    folders = (base, base / "raw", base / name / "raw", base / name)
    for folder in folders:
        for file in (f"{stem}-{kind}", f"{stem}.{kind}"):
            for path in (folder / file, folder / f"{file}.gz"):
                if path.is_file():
                    return path
    raise DataError(f"{name}: no {stem}-{kind} or {stem}-{kind}.gz in any of: {', '.join(map(str, folders))}")


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file: two zero bytes, type 8 (uint8), rank, big-endian sizes, data."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if data.size != math.prod(shape):
        raise DataError(f"{path} is cut off: {data.size} bytes of data, its header says {math.prod(shape)}")
    return data.reshape(shape)
