"""``open_dataloader``: batches in a fixed order from a dataloader's description, or from a live dataloader.

A ``DataSource`` may be iterated any number of times and gives the same batches each time: trials are compared with one
another, so they must see the same data in the same batches.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distune.config.imports import import_object
from distune.config.job import ComponentSpec, Dataloader, DataloaderSpec
from distune.data.batch import Batch, Inputs, Labels, collate, make_batch, split_pair, take
from distune.data.dataset import ArrayDataset, Dataset
from distune.data.filters import SampleFilter
from distune.data.identity import digest_by_index, digest_of_all, digest_of_dataset, digest_of_first
from distune.data.registry import DATASETS, FILTERS, names_user_code
from distune.data.transform import Pipeline
from distune.data.user_code import user_code
from distune.errors import DataError


class DataSource(ABC):
    """Batches in a fixed order.

    Attributes:
        batch_size: Samples of every batch but possibly the last.
    """

    batch_size: int

    @property
    @abstractmethod
    def samples(self) -> int | None:
        """Samples in all batches together; ``None`` where only iterating would tell."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """All batches, from the first."""

    @abstractmethod
    def digest(self) -> str:
        """Identity of the content (SHA-256), for recognising the same data when a run is resumed."""

    by_position: bool = False
    """Whether ``at`` can read single samples."""

    def at(self, index: int, positions: Sequence[int] | NDArray[np.intp]) -> Batch:
        """A batch of the samples at these positions of the source's order, numbered ``index``.

        Raises:
            DataError: The source can only be read from its beginning (``by_position``).
        """
        raise DataError("these data can only be read from their beginning, not by position")

    def head(self, samples: int, shard: int = 0, shards: int = 1) -> Iterator[Batch]:
        """The batches of exactly the first ``samples`` samples (of all, where there are fewer).

        The last batch is cut where needed. With ``shards`` above 1 come only batches whose index is ``shard`` modulo
        ``shards``: all shards together give what one gives.
        """
        left = samples
        for batch in self:
            if left <= 0:
                return
            if batch.index % shards == shard:
                yield batch.first(left)
            left -= batch.size


def open_dataloader(dataloader: Dataloader, seed: int) -> DataSource:
    """A source of batches.

    Args:
        dataloader: Its description; or a live one: an iterable of batches ``(input, label)`` that can be iterated
            again and again, of NumPy arrays or tensors, with or without a ``batch_size``.
        seed: The job's seed, for shuffling, random transforms and random data.

    Raises:
        DataError: The data do not exist or do not fit their description.
        UserCodeError: A dataset or transform of the user raised.
    """
    if not isinstance(dataloader, DataloaderSpec):
        return LiveSource(dataloader)
    if dataloader.batch_size < 1:
        raise DataError(f"batch_size must be 1 or more, not {dataloader.batch_size}")
    pipeline = Pipeline(dataloader.transforms, seed)
    keep = _build_filter(dataloader.filter)
    if not names_user_code(dataloader.dataset.name):
        return IndexedSource(DATASETS.create(dataloader.dataset, seed=seed), dataloader, pipeline, keep, seed)
    what = f"dataset {dataloader.dataset.name!r}"
    build = import_object(dataloader.dataset.name, "dataset")

    def make() -> Any:
        with user_code(what):
            return build(**dataloader.dataset.args)

    found = make()
    if isinstance(found, ArrayDataset):
        return IndexedSource(found, dataloader, pipeline, keep, seed)
    if hasattr(found, "__getitem__") and hasattr(found, "__len__") and not isinstance(found, Mapping):
        return IndexedSource(_UserDataset(found, what), dataloader, pipeline, keep, seed)
    if not hasattr(found, "__iter__"):
        raise DataError(
            f"{what} gave a {type(found).__name__}; it must give an iterable of (input, label), or an object with "
            "__len__ and __getitem__"
        )
    if dataloader.shuffle:
        raise DataError(f"{what} can only be iterated, so it cannot be shuffled; give it __len__ and __getitem__")
    reread = make if iter(found) is found else (lambda: found)
    return StreamSource(reread, what, dataloader, pipeline, keep)


class IndexedSource(DataSource):
    """Batches of a dataset with an index. Array datasets with batch transforms are read without Python per sample."""

    def __init__(
        self, dataset: Dataset, spec: DataloaderSpec, pipeline: Pipeline, keep: SampleFilter | None, seed: int
    ) -> None:
        self.batch_size = spec.batch_size
        self._dataset = dataset
        self._pipeline = pipeline
        self._last_batch: Literal["rollover", "discard"] = spec.last_batch
        self._arrays = dataset if isinstance(dataset, ArrayDataset) and pipeline.vectorised else None
        self._order = _order(dataset, keep, seed if spec.shuffle else None)
        if self._batches == 0:
            raise DataError(
                f"dataset {spec.dataset.name} gives no batch: {len(dataset)} samples, {self._count} of them used, "
                f"batch_size {spec.batch_size}, last_batch {spec.last_batch}"
            )

    @property
    def samples(self) -> int:
        whole = self._count // self.batch_size * self.batch_size
        return whole if self._last_batch == "discard" else self._count

    def __iter__(self) -> Iterator[Batch]:
        return (self._read(index, self.batch_size) for index in range(self._batches))

    def head(self, samples: int, shard: int = 0, shards: int = 1) -> Iterator[Batch]:
        wanted = min(samples, self.samples)
        for index in range(shard, -(-wanted // self.batch_size), shards):
            yield self._read(index, min(self.batch_size, wanted - index * self.batch_size))

    def digest(self) -> str:
        return self._dataset.digest()

    @property
    def _count(self) -> int:
        return len(self._dataset) if self._order is None else len(self._order)

    @property
    def _batches(self) -> int:
        return -(-self.samples // self.batch_size)

    def _read(self, index: int, most: int) -> Batch:
        start = index * self.batch_size
        stop = min(start + most, self.samples)
        return self._batch(index, slice(start, stop) if self._order is None else self._order[start:stop])

    by_position = True

    def at(self, index: int, positions: Sequence[int] | NDArray[np.intp]) -> Batch:
        wanted = np.asarray(positions, np.intp)
        return self._batch(index, wanted if self._order is None else self._order[wanted])

    def _batch(self, index: int, rows: slice | NDArray[np.intp]) -> Batch:
        if self._arrays is not None:
            inputs: Inputs = self._pipeline.batch(take(self._arrays.inputs, rows))
            labels: Labels = take(self._arrays.labels, rows)
            return Batch(index, inputs, labels, rows.stop - rows.start if isinstance(rows, slice) else len(rows))
        positions = [int(row) for row in (range(rows.start, rows.stop) if isinstance(rows, slice) else rows)]
        pairs = [self._pipeline.sample(position, self._dataset[position]) for position in positions]
        inputs, labels = collate(pairs, positions)
        return Batch(index, inputs, labels, len(positions))


class StreamSource(DataSource):
    """Batches of a dataset of the user's that can only be iterated."""

    def __init__(
        self,
        reread: Callable[[], Iterable[Any]],
        what: str,
        spec: DataloaderSpec,
        pipeline: Pipeline,
        keep: SampleFilter | None,
    ) -> None:
        self.batch_size = spec.batch_size
        self._reread = reread
        self._what = what
        self._pipeline = pipeline
        self._keep = keep
        self._discard = spec.last_batch == "discard"

    @property
    def samples(self) -> None:
        return None

    def __iter__(self) -> Iterator[Batch]:
        numbered = enumerate(map(split_pair, _guarded(self._reread(), self._what)))
        kept = ((i, pair) for i, pair in numbered if self._keep is None or self._keep.keeps(*pair))
        for index in itertools.count():
            chunk = list(itertools.islice(kept, self.batch_size))
            if not chunk or (self._discard and len(chunk) < self.batch_size):
                if index == 0:
                    raise DataError(f"{self._what} gives no batch of {self.batch_size} samples")
                return
            pairs = [self._pipeline.sample(position, pair) for position, pair in chunk]
            inputs, labels = collate(pairs, [position for position, _ in chunk])
            yield Batch(index, inputs, labels, len(chunk))

    def digest(self) -> str:
        return digest_of_first(self)


class LiveSource(DataSource):
    """Batches of a live dataloader, as they come."""

    def __init__(self, dataloader: Iterable[Any]) -> None:
        what = type(dataloader).__name__
        if not hasattr(dataloader, "__iter__") and not hasattr(dataloader, "__getitem__"):
            raise DataError(f"a {what} is no dataloader: it cannot be iterated over (input, label) batches")
        if isinstance(dataloader, Iterator):
            raise DataError(
                f"the dataloader is a {what}, which can be read only once, but it is read by every trial; "
                "give a list, or an object whose __iter__ starts again"
            )
        self._dataloader = dataloader
        self._what = f"dataloader {what}"
        declared = getattr(dataloader, "batch_size", None)
        self._declares_batch_size = isinstance(declared, int)
        self.batch_size = declared if isinstance(declared, int) else self._first().size

    @property
    def samples(self) -> int | None:
        if isinstance(self._dataloader, list | tuple):
            return sum(batch.size for batch in self)
        if getattr(self._dataloader, "drop_last", True) or not self._declares_batch_size:
            return None  # without a batch size a sampler of the user's makes the batches
        sampler = getattr(self._dataloader, "sampler", None)
        drawn = getattr(self._dataloader, "dataset", None) if sampler is None else sampler
        return len(drawn) if isinstance(drawn, Sized) else None

    def __iter__(self) -> Iterator[Batch]:
        for index, item in enumerate(_guarded(self._dataloader, self._what)):
            yield make_batch(index, item)

    def digest(self) -> str:
        if isinstance(self._dataloader, list | tuple):
            return digest_of_all(self)
        return digest_of_first(self, f"{self.samples} {digest_of_dataset(self._dataloader, self._what)}")

    def _first(self) -> Batch:
        for batch in self:
            return batch
        raise DataError(f"{self._what} gives no batch")


class _UserDataset(Dataset):
    """A dataset of the user's with ``__len__`` and ``__getitem__``."""

    def __init__(self, found: Any, what: str) -> None:
        self._found = found
        self._what = what

    def __len__(self) -> int:
        with user_code(self._what):
            return len(self._found)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        with user_code(f"{self._what}, sample {index},"):
            item = self._found[index]
        return split_pair(item)

    def digest(self) -> str:
        if isinstance(self._found, Dataset):
            with user_code(self._what):
                return self._found.digest()
        return digest_by_index(self._found, self.__getitem__)


def _build_filter(spec: ComponentSpec | None) -> SampleFilter | None:
    if spec is None:
        return None
    if not names_user_code(spec.name):
        return FILTERS.create(spec)
    what = f"filter {spec.name!r}"
    found = import_object(spec.name, "filter")
    if isinstance(found, type):
        with user_code(what):
            found = found(**spec.args)
    return _UserFilter(found, what)


class _UserFilter(SampleFilter):
    """The user's callable ``(sample, label) -> bool``."""

    def __init__(self, function: Callable[[Any, Any], Any], what: str) -> None:
        self._function = function
        self._what = what

    def keeps(self, sample: Any, label: Any) -> bool:
        with user_code(self._what):
            return bool(self._function(sample, label))


def _order(dataset: Dataset, keep: SampleFilter | None, shuffle_seed: int | None) -> NDArray[np.intp] | None:
    """Indices in reading order; ``None`` for all of them, first to last."""
    if keep is None and shuffle_seed is None:
        return None
    order = np.arange(len(dataset), dtype=np.intp)
    if keep is not None:
        order = order[[keep.keeps(*dataset[index]) for index in range(len(dataset))]]
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(order)
    return order


def _guarded(items: Iterable[Any], what: str) -> Iterator[Any]:
    """The items, with errors of the user's iterator named."""
    with user_code(what):
        iterator = iter(items)
    end = object()
    for index in itertools.count():
        with user_code(f"{what}, item {index},"):
            item = next(iterator, end)
        if item is end:
            return
        yield item
