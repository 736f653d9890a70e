"""Components as a user would write them; tests refer to them by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from distune.data.dataset import Dataset
from distune.data.transform import BatchTransform


class Squares:
    def __init__(self, count: int = 5, changed: int | None = None) -> None:
        self.count = count
        self.changed = changed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.full(3, index * index, np.float32), index + (index == self.changed)


def stream(count: int = 5) -> Iterator[tuple[Any, int]]:
    for index in range(count):
        yield np.full(3, index, np.float32), index


def broken(count: int = 5) -> Iterator[tuple[Any, int]]:
    yield np.zeros(3), 0
    raise KeyError("row 1 is gone")


def ragged() -> list[tuple[Any, int]]:
    return [(np.zeros(3), 0), (np.zeros(4), 1)]


def halve(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return pair[0] / 2, pair[1]


class AddToLabel:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        return pair[0], pair[1] + self.amount


def fail(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    raise ZeroDivisionError("in the user's transform")


def even(sample: Any, label: int) -> bool:
    return label % 2 == 0


class Misses:
    """A metric with no base class: the number of wrong predictions."""

    higher_is_better = False

    def __init__(self) -> None:
        self.wrong = 0

    def update(self, predictions: Any, labels: Any) -> None:
        self.wrong += int((predictions.argmax(1) != labels).sum())

    def result(self) -> int:
        return self.wrong

    def reset(self) -> None:
        self.wrong = 0


class BrokenDerived(Dataset):
    """Derives from our base class, and fails all the same."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Any, int]:
        raise OSError("disk gone")

    def digest(self) -> str:
        return "0"


class BrokenStep(BatchTransform):
    def batch(self, samples: Any) -> Any:
        raise OSError("step gone")
