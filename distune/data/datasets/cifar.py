"""CIFAR-10 and CIFAR-100 from the binary files of their authors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distune.data.dataset import ArrayDataset, existing, refuse_download
from distune.data.registry import dataset_registry
from distune.errors import DataError

_PIXELS = 3 * 32 * 32


class _Cifar(ArrayDataset):
    """Records of ``label_bytes`` labels (the last one is used) and 3,072 pixels, planes R, G, B, row by row."""

    def __init__(
        self, name: str, root: str, files: tuple[str, ...], folder: str, python: str, label_bytes: int
    ) -> None:
        base = existing(root, f"{name} root")
        for candidate in (base / folder, base):
            if all((candidate / file).is_file() for file in files):
                records = [_records(candidate / file, label_bytes) for file in files]
                break
        else:
            found = any((base / sub / leaf).exists() for sub in (python, ".") for leaf in ("batches.meta", "meta"))
            hint = (
                " (the Python version is there, but it is a pickle, and no pickle is ever read from disk)"
                if found
                else ""
            )
            raise DataError(f"{name}: the binary version ({folder}/{files[0]}, …) is not under {base}{hint}")
        data = np.concatenate(records)
        images = data[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        super().__init__(np.ascontiguousarray(images), data[:, label_bytes - 1].astype(np.int64))


def _records(path: Path, label_bytes: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % (label_bytes + _PIXELS):
        raise DataError(f"{path} is not a CIFAR binary file: {raw.size} bytes are no whole number of records")
    return raw.reshape(-1, label_bytes + _PIXELS)


@dataset_registry("CIFAR10")
class CIFAR10(_Cifar):
    """CIFAR-10: uint8 images [32, 32, 3] and class ids.

    Args:
        root: Folder ``cifar-10-batches-bin`` or the one that holds it.
        train: The 50,000 training images instead of the 10,000 test images.
        download: Refused.
    """

    def __init__(self, root: str, train: bool = False, download: bool = False) -> None:
        refuse_download(download, "CIFAR10", "cifar-10-batches-bin/*.bin (the binary version)")
        files = tuple(f"data_batch_{i}.bin" for i in range(1, 6)) if train else ("test_batch.bin",)
        super().__init__("CIFAR10", root, files, "cifar-10-batches-bin", "cifar-10-batches-py", 1)


@dataset_registry("CIFAR100")
class CIFAR100(_Cifar):
    """CIFAR-100 with fine labels: uint8 images [32, 32, 3] and class ids. Arguments as of ``CIFAR10``."""

    def __init__(self, root: str, train: bool = False, download: bool = False) -> None:
        refuse_download(download, "CIFAR100", "cifar-100-binary/*.bin (the binary version)")
        files = ("train.bin",) if train else ("test.bin",)
        super().__init__("CIFAR100", root, files, "cifar-100-binary", "cifar-100-python", 2)
