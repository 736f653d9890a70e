"""``X^T X`` of an activation over the calibration data, the same bits for any order and sharding of the batches.

Sums of floating-point numbers depend on their order. Here nothing is rounded that depends on it:

* the values of a batch are rounded, channel by channel, to 15 bits below the channel's largest; products and sums of
  such integers are exact in float64, whatever order the BLAS and its threads take;
* the sums of a batch are added up in fixed point, in two 64-bit integers with 16 and 54 binary places.

The rounding is a relative 2**-16 of a channel's largest value, far below the sampling error of calibration data.
Memory is ``8 K (K + 1)`` bytes for K channels (one triangle, two integers a value) and no activation is kept.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.errors import TrialError

_MANTISSA = 15
_COARSE = 16
_FINE = 54
_LIMIT = 2.0**46


@dataclass
class _FixedPoint:
    """A vector of sums: ``coarse * 2**-16 + fine * 2**-54``."""

    coarse: NDArray[np.int64]
    fine: NDArray[np.int64]

    @classmethod
    def zeros(cls, size: int) -> _FixedPoint:
        return cls(np.zeros(size, np.int64), np.zeros(size, np.int64))

    def add(self, values: NDArray[np.float64]) -> None:
        coarse = np.rint(np.ldexp(values, _COARSE))
        self.coarse += coarse.astype(np.int64)
        self.fine += np.rint(np.ldexp(values - np.ldexp(coarse, -_COARSE), _FINE)).astype(np.int64)

    def merge(self, other: _FixedPoint) -> None:
        self.coarse += other.coarse
        self.fine += other.fine

    @property
    def largest(self) -> float:
        return float(np.abs(self.values()).max(initial=0.0))

    def values(self) -> NDArray[np.float64]:
        return np.ldexp(self.coarse.astype(np.float64), -_COARSE) + np.ldexp(self.fine.astype(np.float64), -_FINE)


class SecondMoments:
    """Sums over all rows (samples, tokens) of an activation [..., K].

    Attributes:
        channels: K.
        rows: Rows that were counted; those with a value that is not finite are left out.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.rows = 0
        self._products = _FixedPoint.zeros(channels * (channels + 1) // 2)
        self._magnitudes = _FixedPoint.zeros(channels)
        self._digest: bytes | None = None

    def add(self, values: NDArray[Any]) -> None:
        """Count one batch.

        Raises:
            TrialError: The values are so large that the sums overflow.
        """
        rows = np.asarray(values, np.float64).reshape(-1, self.channels)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            rows = rows[finite]
        if not len(rows):
            return
        _, exponents = np.frexp(np.abs(rows).max(axis=0))
        exponents = exponents - _MANTISSA
        integers = np.rint(np.ldexp(rows, -exponents))
        products = np.ldexp(integers.T @ integers, np.add.outer(exponents, exponents))
        upper = products[np.triu_indices(self.channels)]
        if np.abs(upper).max(initial=0.0) + self._products.largest >= _LIMIT:
            raise TrialError(
                "the inputs of a MatMul are too large for GPTQ and AWQ: their squares overflow; use RTN or HQQ"
            )
        self._digest = None
        self._products.add(upper)
        self._magnitudes.add(np.ldexp(np.abs(integers).sum(axis=0), exponents))
        self.rows += len(rows)

    def merge(self, other: SecondMoments) -> None:
        """Add what another shard saw, exactly."""
        self._digest = None
        self.rows += other.rows
        self._products.merge(other._products)
        self._magnitudes.merge(other._magnitudes)

    def moments(self) -> NDArray[np.float64]:
        """``X^T X`` divided by the number of rows, float64 [K, K]."""
        out = np.zeros((self.channels, self.channels))
        upper = np.triu_indices(self.channels)
        out[upper] = self._products.values() / max(self.rows, 1)
        return np.asarray(out + np.triu(out, 1).T)

    def magnitude(self) -> NDArray[np.float64]:
        """Mean of ``|X|`` by channel, float64 [K]."""
        return self._magnitudes.values() / max(self.rows, 1)

    @property
    def digest(self) -> bytes:
        """SHA-256 of ``to_bytes``: an identity for what is made of these moments."""
        if self._digest is None:
            self._digest = hashlib.sha256(self.to_bytes()).digest()
        return self._digest

    def to_bytes(self) -> bytes:
        """Deterministic: equal content gives equal bytes."""
        parts = (self._products.coarse, self._products.fine, self._magnitudes.coarse, self._magnitudes.fine)
        return struct.pack("<QQ", self.channels, self.rows) + b"".join(part.astype("<i8").tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, blob: bytes) -> SecondMoments:
        """Inverse of ``to_bytes``."""
        channels, rows = struct.unpack_from("<QQ", blob)
        out = cls(channels)
        out.rows = rows
        at = 16
        for target in (out._products, out._magnitudes):
            for name in ("coarse", "fine"):
                part = np.frombuffer(blob, "<i8", len(getattr(target, name)), at)
                setattr(target, name, part.astype(np.int64))
                at += part.nbytes
        return out


def counted(channels: int, batches: Iterable[NDArray[Any]]) -> SecondMoments:
    """The moments of several batches."""
    out = SecondMoments(channels)
    for batch in batches:
        out.add(batch)
    return out
