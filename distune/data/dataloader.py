"""A live dataloader in the form of INC 2.x: batches of a dataset that has ``__getitem__`` and ``__len__``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

from distune.data.batch import collate, split_pair
from distune.errors import DataError


class DataLoader:
    """Iterable of ``(input, label)`` batches, in the dataset's order, as often as one likes.

    Args:
        framework: Accepted for INC's sake; the batches are NumPy arrays whatever it is.
        dataset: Has ``__len__`` and gives ``(sample, label)`` by index.
        collate_fn: Makes a batch of a list of ``dataset[i]``; stacks arrays by default.
        last_batch: ``rollover`` keeps a shorter last batch, ``discard`` drops it.
        batch_size: Samples of one batch.
        shuffle: Not available: trials are compared with one another and must see the same data in the same batches.
        num_workers, pin_memory: Without effect.

    Raises:
        DataError: The dataset cannot be read by index, or what is asked for is not available.
    """

    def __init__(
        self,
        framework: str,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        last_batch: Literal["rollover", "discard"] = "rollover",
        batch_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        shuffle: bool = False,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(f"DataLoader: a {type(dataset).__name__} has no __getitem__ and __len__")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"DataLoader: batch_size must be a whole number of at least 1, not {batch_size!r}")
        if last_batch not in ("rollover", "discard"):
            raise DataError(f"DataLoader: last_batch must be rollover or discard, not {last_batch!r}")
        if shuffle:
            raise DataError("DataLoader: shuffle is not available: every trial must see the same batches")
        if num_workers or pin_memory:
            warnings.warn("DataLoader: num_workers and pin_memory have no effect", UserWarning, stacklevel=2)
        self.framework = framework
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = last_batch == "discard"
        self._collate = collate_fn

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            start = index * self.batch_size
            rows = range(start, min(start + self.batch_size, len(self.dataset)))
            samples = [self.dataset[row] for row in rows]
            if self._collate is not None:
                yield self._collate(samples)
            else:
                yield collate([split_pair(sample) for sample in samples], rows)
