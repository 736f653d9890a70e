"""Filter by the number of labels of a sample."""

from __future__ import annotations

from typing import Any

from distune.data.filters import SampleFilter
from distune.data.registry import filter_registry


@filter_registry("LabelBalance")
class LabelBalance(SampleFilter):
    """Keeps samples that carry exactly ``size`` labels (objects of a detection sample; a plain class label is one)."""

    def __init__(self, size: int = 1) -> None:
        self._size = size

    def keeps(self, sample: Any, label: Any) -> bool:
        countable = hasattr(label, "__len__") and getattr(label, "ndim", 1) > 0
        return (len(label) if countable else 1) == self._size
