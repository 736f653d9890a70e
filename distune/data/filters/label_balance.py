"""Filter by the number of labels of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from distune.data.filters import SampleFilter
from distune.data.registry import filter_registry


@filter_registry("LabelBalance")
class LabelBalance(SampleFilter):
    """Keeps samples that carry exactly ``size`` labels (objects of a detection sample; a plain class label is one)."""

    def __init__(self, size: int = 1) -> None:
        self._size = size

    def keeps(self, sample: Any, label: Any) -> bool:
        return int(np.size(np.asarray(label)) if np.ndim(label) < 1 else len(label)) == self._size
