"""The one order of the evaluation samples in which every trial of a run is scored.

Made from the fp32 model's outcomes: the samples that it gets wrong first, then those that it gets right, those of the
smallest margin in front. A worse model shows itself early in this order: what is left are samples that are hardly ever
lost, so a trial can be given up as soon as even those could not save it.

It travels to every worker, and with the baseline's result into the journal, so it is small: one byte a sample says in
which of 256 parts of the order it lies; within a part samples keep the order of the data.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError

_PARTS = 256

_VERSION = 2


@dataclass(frozen=True)
class SampleOrder:
    """See the module's description.

    Attributes:
        parts: The part of the order that each sample lies in, one byte a sample, in the order of the data.
        totals: Weight of all samples, by metric.
        margins: Whether margins are known.
        nearest: The batch of the smallest margins; the first where they are not known.
    """

    parts: bytes
    totals: tuple[float, ...]
    margins: bool = False
    nearest: int = 0

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """Positions of the samples in the data, in the order of evaluation."""
        return _rows(self.parts)

    def encode(self) -> str:
        """As text for a message and the journal, about 1.4 bytes a sample at most; ``decode`` is the inverse."""
        packed = base64.b64encode(zlib.compress(self.parts, 9)).decode()
        return json.dumps([_VERSION, packed, self.totals, self.margins, self.nearest])

    @classmethod
    def decode(cls, text: str) -> SampleOrder:
        """Inverse of ``encode``.

        Raises:
            DataError: Another version of distune wrote it.
        """
        version, *content = json.loads(text)
        if version != _VERSION:
            raise DataError(f"the order of the samples is of version {version}, and this distune reads {_VERSION}")
        packed, totals, margins, nearest = content
        return cls(zlib.decompress(base64.b64decode(packed)), tuple(totals), margins, nearest)


def build_order(
    keys: NDArray[np.float64],
    margins: NDArray[np.float64] | None,
    totals: Sequence[float],
    sizes: Sequence[int],
) -> SampleOrder:
    """The order for samples by growing key.

    Args:
        keys: [n], smaller is earlier.
        margins: The fp32 model's margins [n], where they are known.
        totals: Weight of all samples, by metric.
        sizes: Samples of each batch; the order is cut into batches of the same sizes.
    """
    count = len(keys)
    place = np.empty(count, np.int64)
    place[np.argsort(keys, kind="stable")] = np.arange(count)
    parts = (place * _PARTS // count).astype(np.uint8).tobytes()
    totals = tuple(map(float, totals))
    if margins is None or not np.isfinite(margins).any():
        return SampleOrder(parts, totals)
    ordered = np.abs(margins)[_rows(parts)]
    starts = np.cumsum([0, *sizes[:-1]])
    nearest = int(np.argmin(np.maximum.reduceat(np.nan_to_num(ordered, nan=np.inf), starts)))
    return SampleOrder(parts, totals, True, nearest)


def _rows(parts: bytes) -> NDArray[np.intp]:
    return np.argsort(np.frombuffer(parts, np.uint8), kind="stable")
