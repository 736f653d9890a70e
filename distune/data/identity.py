"""Whether data are the same when a run is resumed: digests of what a dataset or dataloader of the user's delivers.

What is in memory is looked at whole. What has to be read or computed would take as long as an epoch: of that it is the
first 16 MiB, and where samples can be read by index without side effects 16 MiB from all over. A change elsewhere is
not noticed. A second reading tells whether the data are the same each time; what is not (a live shuffle, random
augmentation) counts by its kinds alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.data.batch import Batch, to_array
from distune.data.dataset import hash_arrays
from distune.data.user_code import user_code
from distune.errors import DataError

_BYTES = 16 << 20

_PLAIN = (bool, int, float, str)

_PLAIN_SAMPLERS = frozenset({"SequentialSampler", "RandomSampler"})


def digest_of_all(batches: Iterable[Batch]) -> str:
    """SHA-256 over all batches."""
    return _digest((batch.inputs, batch.labels) for batch in batches)


def digest_of_first(batches: Iterable[Batch], prefix: str = "") -> str:
    """SHA-256 of ``prefix`` and the first batches of what can be iterated again and again."""
    return _digest_if_same(lambda: _first(batches), prefix)


def digest_by_index(data: Any, read: Callable[[int], Any]) -> str:
    """SHA-256 of samples of ``data``, which has a length, read one by one: of all in memory, else from all over."""
    count = len(data)
    if not count:
        return _digest(())
    most = count if isinstance(data, list | tuple) else max(2, _BYTES // max(1, _size(read(0))))
    positions = np.unique(np.linspace(0, count - 1, min(count, most), dtype=np.intp)).tolist()
    return _digest_if_same(lambda: map(read, positions), f"{count}")


def digest_of_dataset(dataloader: Any, what: str) -> str:
    """Of the dataset behind a live dataloader, where reading it by index does what the dataloader does; else empty."""
    dataset: Any = getattr(dataloader, "dataset", None)
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, list | tuple):
        return _digest([tensors])
    if not _is_read_by_index(dataloader, dataset):
        return ""

    def read(index: int) -> Any:
        with user_code(f"{what}, sample {index},"):
            return dataset[index]

    return digest_by_index(dataset, read)


def _is_read_by_index(dataloader: Any, dataset: Any) -> bool:
    """Whether the dataloader reads every sample in this process: what a sampler leaves out might not be readable.

    A dataset that worker processes read may open its files at the first sample; they must not inherit them from here.
    """
    sampler = getattr(dataloader, "sampler", None)
    return (
        hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and not isinstance(dataset, Mapping)
        and not getattr(dataloader, "num_workers", 0)
        and isinstance(getattr(dataloader, "batch_size", None), int)
        and (sampler is None or type(sampler).__name__ in _PLAIN_SAMPLERS)
    )


def _first(batches: Iterable[Batch]) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        item = batch.inputs, batch.labels
        yield item
        seen += _size(item)
        if seen >= _BYTES:
            return


def _digest_if_same(read: Callable[[], Iterable[Any]], prefix: str) -> str:
    digest = _digest(read())
    if digest != _digest(read()):
        digest = repr(sorted({(array.dtype.kind, array.ndim) for item in read() for array in _arrays(item)}))
    return hashlib.sha256(f"{prefix} {digest}".encode()).hexdigest()


def _digest(items: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(hash_arrays(_arrays(item)).encode())
    return digest.hexdigest()


def _size(item: Any) -> int:
    return sum(array.nbytes for array in _arrays(item))


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    """Everything in a sample or batch as arrays, in order; what can become none counts by its type."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield np.array(str(name))
            yield from _arrays(member)
    elif isinstance(value, list | tuple) and not all(isinstance(member, _PLAIN) for member in value):
        for member in value:
            yield from _arrays(member)
    else:
        try:
            yield to_array(value)
        except DataError:
            yield np.array(type(value).__qualname__)
