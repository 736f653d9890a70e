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

DECISIVE = 0.2
"""Share of the samples that ranking looks at, at most: those of the smallest margins, right and wrong ones."""

_VERSION = 1


@dataclass(frozen=True)
class SampleOrder:
    """See the module's description.

    Attributes:
        parts: The part of the order that each sample lies in, one byte a sample, in the order of the data.
        totals: Weight of all samples, by metric.
        decisive: First and last (exclusive) batch of those that ranking looks at; equal where there are none.
        outside: The fp32 model's sum of outcomes over all other batches, by metric.
        scale: A margin's usual size; 0 where margins are not known.
    """

    parts: bytes
    totals: tuple[float, ...]
    decisive: tuple[int, int] = (0, 0)
    outside: tuple[float, ...] = ()
    scale: float = 0.0

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """Positions of the samples in the data, in the order of evaluation."""
        return _rows(self.parts)

    @property
    def ranks(self) -> bool:
        """Whether there are decisive samples."""
        return self.decisive[0] < self.decisive[1]

    def encode(self) -> str:
        """As text for a message and the journal, about 1.4 bytes a sample at most; ``decode`` is the inverse."""
        packed = base64.b64encode(zlib.compress(self.parts, 9)).decode()
        return json.dumps([_VERSION, packed, self.totals, self.decisive, self.outside, self.scale])

    @classmethod
    def decode(cls, text: str) -> SampleOrder:
        """Inverse of ``encode``.

        Raises:
            DataError: Another version of distune wrote it.
        """
        version, *content = json.loads(text)
        if version != _VERSION:
            raise DataError(f"the order of the samples is of version {version}, and this distune reads {_VERSION}")
        packed, totals, decisive, outside, scale = content
        parts = zlib.decompress(base64.b64decode(packed))
        return cls(parts, tuple(totals), (decisive[0], decisive[1]), tuple(outside), scale)


def build_order(
    keys: NDArray[np.float64],
    margins: NDArray[np.float64] | None,
    outcomes: Sequence[NDArray[np.float64]],
    totals: Sequence[float],
    sizes: Sequence[int],
) -> SampleOrder:
    """The order for samples by growing key.

    Args:
        keys: [n], smaller is earlier.
        margins: The fp32 model's margins [n], where they are known.
        outcomes: The fp32 model's outcomes [n], by metric.
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
    rows = _rows(parts)
    ends = np.cumsum(sizes)
    first, last = _window(np.abs(margins)[rows], [0, *ends.tolist()])
    outside = np.ones(count, np.bool_)
    if first < last:
        outside[rows[ends[first] - sizes[first] : ends[last - 1]]] = False
    sums = tuple(float(values[outside].sum()) for values in outcomes)
    return SampleOrder(parts, totals, (first, last), sums, float(np.std(margins[np.isfinite(margins)])))


def _rows(parts: bytes) -> NDArray[np.intp]:
    return np.argsort(np.frombuffer(parts, np.uint8), kind="stable")


def _window(distances: NDArray[np.float64], edges: Sequence[int]) -> tuple[int, int]:
    """The run of whole batches, of at most ``DECISIVE`` of the samples, that has the smallest margins."""
    allowed = DECISIVE * len(distances)
    best, found = np.inf, (0, 0)
    longest = max((b - a for a in range(len(edges)) for b in (_reach(edges, a, allowed),)), default=0)
    for first in range(len(edges) - longest):
        if longest and edges[first + longest] - edges[first] <= allowed:
            farthest = float(np.max(distances[edges[first] : edges[first + longest]]))
            if farthest < best:
                best, found = farthest, (first, first + longest)
    return found


def _reach(edges: Sequence[int], first: int, allowed: float) -> int:
    """The last edge that is at most ``allowed`` samples behind edge ``first``."""
    return int(np.searchsorted(np.asarray(edges), edges[first] + allowed, side="right")) - 1
