"""A histogram whose counts do not depend on the order of the values: what shards have counted merges exactly.

Bins are aligned at 0 and as wide as a power of two. When the range grows the width doubles, and two old bins are
exactly one new bin, so the counts are those of the final width whatever came first (a histogram with data-dependent
edges depends on the order of the batches).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS_LOG2 = 12
BINS = 1 << _BINS_LOG2
"""Bins on each side of zero; the largest magnitude lies in the outer half of them."""

_MIN_EXPONENT = -126


@dataclass
class Histogram:
    """Counts of values in bins of width ``2**exponent`` aligned at 0.

    Bin ``i`` of ``counts`` holds values in ``[(i - 4096) * width, (i - 4095) * width)``.

    Attributes:
        exponent: Power of two of the bin width: the smallest for which every value lies inside.
        counts: int64 [8192].
    """

    exponent: int = _MIN_EXPONENT
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))

    def add(self, values: NDArray[np.floating[Any]], low: float, high: float) -> None:
        """Count finite ``values`` [n], of which ``low`` is the smallest and ``high`` the largest."""
        if values.size == 0:
            return
        self._widen(_exponent_for(max(abs(low), abs(high))))
        # Scaling by a power of two is exact: up in float32 too, down only where subnormal values have room.
        dtype = np.dtype(np.float32 if values.dtype == np.float32 and self.exponent <= 0 else np.float64)
        scaled = np.multiply(values, dtype.type(2.0**-self.exponent), dtype=dtype)
        np.floor(scaled, out=scaled)
        np.add(scaled, BINS, out=scaled)
        self.counts += np.bincount(scaled.astype(np.int64), minlength=2 * BINS)

    def merge(self, other: Histogram) -> None:
        """Add the counts of ``other``, exactly."""
        exponent = max(self.exponent, other.exponent)
        self._widen(exponent)
        self.counts += _coarsened(other.counts, exponent - other.exponent)

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Bin width in the tensor's unit."""
        return math.ldexp(1.0, self.exponent)

    def smallest_magnitude(self) -> float:
        """Lower edge of the innermost bin in use: what is known of the smallest value, which there must be."""
        used = np.flatnonzero(self.counts) - BINS
        return float(np.where(used >= 0, used, -used - 1).min()) * self.width

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarsened(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _exponent_for(magnitude: float) -> int:
    return max(math.frexp(magnitude)[1] - _BINS_LOG2, _MIN_EXPONENT)


def _coarsened(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The same counts in bins ``2**doublings`` times as wide; bins of each side keep their side of zero."""
    if doublings == 0:
        return counts
    out = np.zeros_like(counts)
    used = np.flatnonzero(counts)
    np.add.at(out, ((used - BINS) >> min(doublings, 62)) + BINS, counts[used])
    return out


__all__ = ["BINS", "Histogram"]
