"""The evaluation batches, ready for the model: as the data give them, or in another order of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.base import Feed, InputInfo
from distune.data.batch import Labels, arrays_of, take
from distune.data.loader import DataSource
from distune.evaluation.feeds import to_feed


@dataclass(frozen=True)
class Prepared:
    """One batch, ready for the model.

    Attributes:
        index: Its position among the batches of its partition.
    """

    index: int
    feed: Feed
    labels: Labels
    size: int


class EvaluationBatches:
    """Batches of one source, formed and transformed once where they fit into memory, else read again each time.

    Args:
        source: The data.
        inputs: The model's inputs.
        iteration: Batches at most; -1 means all.
        memory_limit: Bytes that prepared batches may take.
    """

    def __init__(self, source: DataSource, inputs: Sequence[InputInfo], iteration: int, memory_limit: int) -> None:
        self._source = source
        self._inputs = tuple(inputs)
        self._iteration = iteration
        self._memory_limit = memory_limit
        self._kept: list[Prepared] | None = None
        self._joined: tuple[Feed, Labels] | None = None
        self._sizes: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each batch; known once all were read."""
        return self._sizes

    def __iter__(self) -> Iterator[Prepared]:
        """The user's own batches."""
        if self._joined is not None:
            start = 0
            for index, size in enumerate(self._sizes):
                yield self._rows(index, slice(start, start + size), size)
                start += size
            return
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Prepared] | None = []
        used = 0
        sizes: list[int] = []
        for batch in self._source:
            if 0 <= self._iteration <= batch.index:
                break
            prepared = Prepared(batch.index, to_feed(batch.inputs, self._inputs), batch.labels, batch.size)
            sizes.append(batch.size)
            if kept is not None:
                used += sum(array.nbytes for array in (*prepared.feed.values(), *arrays_of(prepared.labels)))
                kept.append(prepared)
                if used > self._memory_limit:
                    kept = None
            yield prepared
        self._kept = kept
        self._sizes = tuple(sizes)

    def reorder(self) -> bool:
        """Prepare for ``ordered``; ``False`` where samples cannot be put into other batches.

        That is where batches differ in shape (padded ones), or neither fit into memory nor can be read by position.
        """
        if not self._sizes:
            for _ in self:
                pass
        if self._joined is None and self._kept is not None:
            self._joined = _join(self._kept)
            if self._joined is not None:
                self._kept = None
        return self._joined is not None or (self._kept is None and self._source.by_position)

    def ordered(self, rows: NDArray[np.intp], batches: Iterable[int]) -> Iterator[Prepared]:
        """Batches of the samples in the order ``rows``, cut to the sizes of the user's own; those of these indices."""
        ends = np.cumsum(self._sizes)
        for index in batches:
            size = self._sizes[index]
            yield self._rows(index, rows[ends[index] - size : ends[index]], size)

    def of(self, rows: NDArray[np.intp], size: int) -> Iterator[Prepared]:
        """Batches of ``size`` of the samples ``rows`` each, fewer in the last one."""
        for index, start in enumerate(range(0, len(rows), size)):
            chosen = rows[start : start + size]
            yield self._rows(index, chosen, len(chosen))

    def _rows(self, index: int, rows: slice | NDArray[np.intp], size: int) -> Prepared:
        if self._joined is not None:
            feed, labels = self._joined
            return Prepared(index, take(feed, rows), take(labels, rows), size)
        positions = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        batch = self._source.at(index, positions)
        return Prepared(index, to_feed(batch.inputs, self._inputs), batch.labels, size)


def _join(batches: Sequence[Prepared]) -> tuple[Feed, Labels] | None:
    """All batches as one; ``None`` where their shapes do not allow it."""
    parts = [(*batch.feed.values(), *arrays_of(batch.labels)) for batch in batches]
    kinds = {tuple((array.shape[1:], array.dtype) for array in part) for part in parts}
    structures = {(tuple(batch.feed), _structure(batch.labels)) for batch in batches}
    if len(kinds) != 1 or len(structures) != 1:
        return None
    if any(len(array) != batch.size for batch, part in zip(batches, parts, strict=True) for array in part):
        return None
    feed = {name: np.concatenate([batch.feed[name] for batch in batches]) for name in batches[0].feed}
    first = batches[0].labels
    labels: Any = None
    if isinstance(first, tuple):
        labels = tuple(np.concatenate(column) for column in zip(*(batch.labels for batch in batches), strict=True))
    elif first is not None:
        labels = np.concatenate([batch.labels for batch in batches])
    return feed, labels


def _structure(labels: Any) -> tuple[str, int]:
    return type(labels).__name__, len(labels) if isinstance(labels, tuple | Mapping) else 0
