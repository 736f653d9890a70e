"""Statistics per channel that do not depend on the order or the sharding of the batches.

Minima and maxima merge exactly. Sums are kept as whole multiples of ``2**-20``: each batch's sum is rounded once, and
integers add up to the same number in any order (floating-point sums do not). Memory is 24 bytes a channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.errors import TrialError

_UNIT = 1 << 20
_CHUNK = 1 << 16
_ADDED_IN_FLOAT32 = 64
_LONG = 256
_SAFE_MAGNITUDE = 8192.0
"""Values are clipped to this before they are counted: what is larger is a mask constant and could overflow sums."""


@dataclass
class ChannelStatistics:
    """Of one tensor, along one of its axes.

    Attributes:
        low, high: Smallest and largest value, float32 [channels].
        total, squares: Sum of the values and of their squares in units of ``2**-20``, int64 [channels].
        count: Values of each channel.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    total: NDArray[np.int64]
    squares: NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, values: NDArray[Any], axis: int) -> ChannelStatistics:
        """Of one batch; what is not finite counts as zero, magnitudes are cut at 8192."""
        axis %= values.ndim
        shape = (math.prod(values.shape[:axis]), values.shape[axis], math.prod(values.shape[axis + 1 :]))
        blocks = np.asarray(values, np.float32).reshape(shape)
        if not blocks.size:
            none = np.zeros(shape[1], np.int64)
            return cls(none.astype(np.float32), none.astype(np.float32), none, none.copy(), 0)
        with np.errstate(over="ignore", invalid="ignore"):
            low, high, sums, squares = _reduced(blocks)
        if not (float(low.min()) > -_SAFE_MAGNITUDE and float(high.max()) < _SAFE_MAGNITUDE):  # False where NaN
            limited = np.nan_to_num(blocks, nan=0.0, posinf=0.0, neginf=0.0)
            low, high, sums, squares = _reduced(np.clip(limited, -_SAFE_MAGNITUDE, _SAFE_MAGNITUDE))
        return cls(low, high, _fixed(sums), _fixed(squares), shape[0] * shape[2])

    def merge(self, name: str, other: ChannelStatistics) -> None:
        """Add what another batch or shard saw.

        Raises:
            TrialError: The batches differ in their number of channels.
        """
        if len(self.low) != len(other.low):
            raise TrialError(
                f"tensor {name!r} has {len(self.low)} channels in one batch and {len(other.low)} in another"
            )
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.total, self.squares = self.total + other.total, self.squares + other.squares
        self.count += other.count

    @property
    def peak(self) -> NDArray[np.float32]:
        """Largest magnitude, float32 [channels]."""
        return np.maximum(-self.low, self.high).clip(0)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean, float64 [channels]."""
        return np.asarray(self.total / (_UNIT * max(self.count, 1)))

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Mean of the squares, float64 [channels]."""
        return np.asarray(self.squares / (_UNIT * max(self.count, 1)))

    def to_bytes(self) -> bytes:
        """Deterministic: equal content gives equal bytes."""
        parts = (self.low.astype("<f4"), self.high.astype("<f4"), self.total.astype("<i8"), self.squares.astype("<i8"))
        return self.count.to_bytes(8, "little") + b"".join(part.tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> ChannelStatistics:
        """Inverse of ``to_bytes``."""
        channels = (len(blob) - 8) // 24
        floats = np.frombuffer(blob, "<f4", 2 * channels, 8).reshape(2, channels).astype(np.float32)
        sums = np.frombuffer(blob, "<i8", 2 * channels, 8 + 8 * channels).reshape(2, channels).astype(np.int64)
        return cls(floats[0], floats[1], sums[0], sums[1], int.from_bytes(blob[:8], "little"))


def channel_key(tensor: str, axis: int) -> str:
    """The name under which the statistics of ``tensor`` along ``axis`` are kept."""
    return f"{axis}:{tensor}"


def _reduced(
    blocks: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Minima, maxima, sums and sums of squares [channels] of values [before, channels, after].

    As many at a time as the processor's cache holds, along a long axis first. A few values, or those along one long
    axis, are added up in float32, their sums in float64.
    """
    before, channels, after = blocks.shape
    step = min(max(1, _CHUNK // (channels * after)), _ADDED_IN_FLOAT32)
    low, high = np.full(channels, np.inf, np.float32), np.full(channels, -np.inf, np.float32)
    sums, squares = np.zeros(channels), np.zeros(channels)
    first, then, product = (2, 0, "nch,nch->nc") if after >= _LONG else (0, 1, "nch,nch->ch")
    for start in range(0, before, step):
        chunk = blocks[start : start + step]
        np.minimum(low, chunk.min(first).min(then), out=low)
        np.maximum(high, chunk.max(first).max(then), out=high)
        sums += chunk.sum(first).sum(then, dtype=np.float64)
        squares += np.einsum(product, chunk, chunk).sum(then, dtype=np.float64)
    return low, high, sums, squares


def _fixed(sums: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(sums * _UNIT).astype(np.int64)
