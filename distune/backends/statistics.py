"""Calibration statistics that do not depend on the order or the sharding of the batches.

Per tensor three things are kept, each of which merges exactly:

* minimum and maximum of every batch, indexed by the batch's global number (moving averages follow from them);
* where they are wanted, counts of the values (``backends.histogram``);
* how many values were finite, and how many were not.

Attention masks put constants such as -1e9, -65504 or -10000 into tensors whose other values are small. Values from
``MASK_MAGNITUDE`` on are therefore kept apart. They set a range only where they continue the other values: when the
smallest of them is ``MASK_GAP`` times larger than the largest ordinary value they are taken for mask constants and
left out (the quantized tensor saturates there), and ``remarks`` says so. Infinities and NaN never set a range.

Memory is bounded by about 128 KiB a tensor plus 16 bytes a batch, whatever the size of the tensor.

What recipes and weight-only quantization need of the inputs of layers is kept beside them, order-free as well:
statistics by channel (``backends.channel_statistics``) and second moments (``backends.second_moments``).
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distune.backends.channel_statistics import ChannelStatistics
from distune.backends.histogram import Histogram
from distune.backends.range_algorithms import kl_range, moving_average, percentile_range
from distune.backends.second_moments import SecondMoments
from distune.errors import TrialError
from distune.space.op_config import HISTOGRAM_ALGORITHMS

STATISTICS_VERSION = 5
"""Changes with what the statistics hold, so that nobody reads older ones."""

MASK_MAGNITUDE = 8192.0
"""Magnitude from which a value may be a mask constant (BERT's is -10000)."""

MASK_GAP = 8.0
"""How many times larger than every ordinary value mask constants are."""

DEFAULT_PERCENTILE = 99.99
"""Percentage of the values that the ``percentile`` algorithm keeps inside the range."""

_CHUNK = 1 << 16
_MAGIC = b"DSTAT%d" % STATISTICS_VERSION


@dataclass
class TensorStatistics:
    """Everything that is known of one tensor.

    Attributes:
        batches: Minimum and maximum of the ordinary values, then of the large ones (``MASK_MAGNITUDE`` and more), by
            batch number. Where a batch has none of a kind the minimum is +inf and the maximum -inf.
        ordinary, large: Histograms of the two kinds; that of the ordinary values is empty where none was wanted.
        counted: How many ordinary values there were.
        nonfinite: How many values were infinite or NaN.
    """

    batches: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    ordinary: Histogram = field(default_factory=Histogram)
    large: Histogram = field(default_factory=Histogram)
    counted: int = 0
    nonfinite: int = 0

    def add(self, batch: int, values: NDArray[Any], histogram: bool = True) -> None:
        """Count one batch of the tensor, in a histogram or only as far as minima and maxima go."""
        flat = np.asarray(values, dtype=np.float32).ravel()
        low, high, large_low, large_high = math.inf, -math.inf, math.inf, -math.inf
        for start in range(0, flat.size, _CHUNK):  # as many values as the processor's cache holds are read once
            bounds = self._count(flat[start : start + _CHUNK], histogram)
            low, high = min(low, bounds[0]), max(high, bounds[1])
            large_low, large_high = min(large_low, bounds[2]), max(large_high, bounds[3])
        self.batches[batch] = (low, high, large_low, large_high)

    def _count(self, values: NDArray[np.float32], histogram: bool) -> tuple[float, float, float, float]:
        """Count values; returns what ``batches`` holds, of them."""
        low, high = float(values.min()), float(values.max())
        if low > -MASK_MAGNITUDE and high < MASK_MAGNITUDE:  # False where NaN: the usual case takes no masks
            self._count_ordinary(values, low, high, histogram)
            return low, high, math.inf, -math.inf
        finite = values[np.isfinite(values)]
        self.nonfinite += int(values.size - finite.size)
        is_large = np.abs(finite) >= MASK_MAGNITUDE
        ordinary, large = finite[~is_large], finite[is_large]
        bounds = (*_min_max(ordinary), *_min_max(large))
        self._count_ordinary(ordinary, bounds[0], bounds[1], histogram)
        self.large.add(large, *bounds[2:])
        return bounds

    def _count_ordinary(self, values: NDArray[np.float32], low: float, high: float, histogram: bool) -> None:
        self.counted += values.size
        if histogram:
            self.ordinary.add(values, low, high)

    def merge(self, name: str, other: TensorStatistics) -> None:
        """Add what another shard saw.

        Raises:
            TrialError: Both shards saw the same batch.
        """
        twice = self.batches.keys() & other.batches.keys()
        if twice:
            raise TrialError(
                f"calibration statistics of tensor {name!r} hold batch {min(twice)} twice: give each batch to one shard"
            )
        self.batches.update(other.batches)
        self.ordinary.merge(other.ordinary)
        self.large.merge(other.large)
        self.counted += other.counted
        self.nonfinite += other.nonfinite

    @property
    def has_mask(self) -> bool:
        """The large values are mask constants: they are far from every ordinary one."""
        if not self.large.total or not self.counted:
            return False
        bounds = np.array(list(self.batches.values()))
        largest = max(-bounds[:, 0].min(), bounds[:, 1].max())
        positive = self.large.smallest_magnitude()
        return bool(positive >= MASK_GAP * largest)

    def batch_ranges(self) -> NDArray[np.float64]:
        """Minimum and maximum of each batch in order of batch number, float64 [batches, 2]; mask constants left out."""
        rows = np.array([self.batches[index] for index in sorted(self.batches)], np.float64).reshape(-1, 4)
        if self.has_mask or not self.large.total:
            return rows[:, :2]
        return np.stack([np.minimum(rows[:, 0], rows[:, 2]), np.maximum(rows[:, 1], rows[:, 3])], axis=1)

    def histogram(self) -> Histogram:
        """Counts of all values but mask constants."""
        out = Histogram(self.ordinary.exponent, self.ordinary.counts.copy())
        if self.large.total and not self.has_mask:
            out.merge(self.large)
        return out


class ValueCounts(NamedTuple):
    """How many values of a tensor were not finite, and how many were."""

    nonfinite: int
    finite: int


class CalibrationStatistics:
    """Statistics of many tensors, by name. Order-free: see the module's docstring.

    Attributes:
        histograms: Whether values are counted in histograms, which takes as long as all the rest together.
        tensors: What ranges are made of.
        moments: What GPTQ, AWQ and adaptive rounding need, of inputs of layers; empty where none is in question.
        channels: Statistics by channel of inputs of layers, by ``channel_statistics.channel_key``.
    """

    def __init__(self, histograms: bool = True) -> None:
        self.histograms = histograms
        self.tensors: dict[str, TensorStatistics] = {}
        self.moments: dict[str, SecondMoments] = {}
        self.channels: dict[str, ChannelStatistics] = {}
        self._ranges: dict[tuple[str, str, float], tuple[float, float]] = {}

    def add(self, batch: int, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Count one batch.

        Args:
            batch: Its global number, the same for any sharding.
            tensors: Values by tensor name, any float dtype and shape.
        """
        self._ranges.clear()
        for name, values in tensors.items():
            self.tensors.setdefault(name, TensorStatistics()).add(batch, values, self.histograms)

    def add_moments(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Count one batch [..., channels] of each tensor, by name."""
        for name, values in tensors.items():
            self.moments.setdefault(name, SecondMoments(values.shape[-1])).add(values)

    def add_channels(self, key: str, statistics: ChannelStatistics) -> None:
        """Count one batch of a tensor along one axis."""
        if key in self.channels:
            self.channels[key].merge(key, statistics)
        else:
            self.channels[key] = statistics

    def range(
        self, tensor: str, algorithm: str = "minmax", percentile: float = DEFAULT_PERCENTILE
    ) -> tuple[float, float]:
        """The range that ``algorithm`` gives a tensor; both ends are exact float32 values.

        Args:
            algorithm: ``minmax``; ``moving_average`` and ``kl`` (see ``backends.range_algorithms``);
                ``percentile``: the range that leaves out ``(100 - percentile) / 2`` percent of the values at each end.

        Raises:
            TrialError: The tensor was not calibrated, or not counted in a histogram where the algorithm needs one, or
                the algorithm is unknown.
        """
        key = (tensor, algorithm, percentile)
        if key not in self._ranges:
            low, high = self._compute(tensor, algorithm, percentile)
            self._ranges[key] = (float(np.float32(low)), float(np.float32(high)))
        return self._ranges[key]

    def remarks(self) -> dict[str, str]:
        """What was left out of the ranges, by tensor name; empty for a model without masks or overflows."""
        out = {}
        for name, stats in sorted(self.tensors.items()):
            parts = []
            if stats.has_mask:
                parts.append(f"{stats.large.total} values of magnitude >= {MASK_MAGNITUDE:g} taken for mask constants")
            if stats.nonfinite:
                parts.append(f"{stats.nonfinite} values not finite")
            if parts:
                out[name] = "; ".join(parts) + ": not part of the calibrated range"
        return out

    def to_bytes(self) -> bytes:
        """Compact and deterministic: equal content gives equal bytes, whatever order it was collected in."""
        header: list[Any] = [self.histograms]
        arrays: list[bytes] = []
        for name in sorted(self.tensors):
            stats = self.tensors[name]
            batches = sorted(stats.batches)
            spans = []
            for histogram in (stats.ordinary, stats.large):
                used = np.flatnonzero(histogram.counts)
                start, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
                spans.append([histogram.exponent, start, stop])
                arrays.append(histogram.counts[start:stop].astype("<i8").tobytes())
            arrays.append(np.array([stats.batches[b] for b in batches], "<f4").tobytes())
            header.append([name, batches, stats.counted, stats.nonfinite, *spans])
        text = json.dumps(header, separators=(",", ":")).encode()
        return _MAGIC + zlib.compress(struct.pack("<Q", len(text)) + text + b"".join(arrays), 6) + self._layers_bytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> CalibrationStatistics:
        """Inverse of ``to_bytes``.

        Raises:
            TrialError: ``blob`` was not written by ``to_bytes``.
        """
        out = cls()
        out.histograms, out.tensors, rest = _read_tensors(blob)
        out._read_layers(rest)
        return out

    def _layers_bytes(self) -> bytes:
        """Nothing where nothing is kept, so that the form of plain statistics does not change."""
        blobs = [("channels", name, self.channels[name].to_bytes()) for name in sorted(self.channels)]
        blobs += [("moments", name, self.moments[name].to_bytes()) for name in sorted(self.moments)]
        if not blobs:
            return b""
        header = [[kind, name, len(blob)] for kind, name, blob in blobs]
        text = json.dumps(header, separators=(",", ":")).encode()
        # Mantissas do not compress: level 1 gets the zeros, and more costs seconds.
        return zlib.compress(struct.pack("<Q", len(text)) + text + b"".join(blob for _, _, blob in blobs), 1)

    def _read_layers(self, blob: bytes) -> None:
        if not blob:
            return
        data = zlib.decompress(blob)
        (size,) = struct.unpack_from("<Q", data)
        at = 8 + size
        for kind, name, length in json.loads(data[8:at]):
            if kind == "channels":
                self.channels[name] = ChannelStatistics.from_bytes(data[at : at + length])
            else:
                self.moments[name] = SecondMoments.from_bytes(data[at : at + length])
            at += length

    def _compute(self, tensor: str, algorithm: str, percentile: float) -> tuple[float, float]:
        stats = self.tensors.get(tensor)
        if stats is None:
            raise TrialError(f"tensor {tensor!r} was not calibrated; calibrated are {len(self.tensors)} tensors")
        ranges = stats.batch_ranges()
        if not np.isfinite(ranges).any():
            return 0.0, 0.0
        ranges = ranges[np.isfinite(ranges).all(axis=1)]  # others are of batches without any value that counts
        low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
        if algorithm == "minmax":
            return low, high
        if algorithm in HISTOGRAM_ALGORITHMS and not self.histograms:
            raise TrialError(f"the values of tensor {tensor!r} were not counted, which algorithm {algorithm!r} needs")
        if algorithm == "percentile":
            below, above = percentile_range(stats.histogram(), percentile)
        elif algorithm == "kl":
            below, above = kl_range(stats.histogram())
        elif algorithm == "moving_average":
            below, above = moving_average(ranges)
        else:
            raise TrialError(
                f"unknown calibration algorithm {algorithm!r}; known: minmax, moving_average, kl, percentile"
            )
        return max(low, below), min(high, above)


def nonfinite_values(blob: bytes) -> dict[str, ValueCounts]:
    """Tensors that took values that were not finite, by name.

    Raises:
        TrialError: ``blob`` was not written by ``CalibrationStatistics.to_bytes``.
    """
    _, tensors, _ = _read_tensors(blob)
    return {
        name: ValueCounts(each.nonfinite, each.counted + each.large.total)
        for name, each in tensors.items()
        if each.nonfinite
    }


def merge(blobs: Iterable[bytes]) -> bytes:
    """Merge the statistics of several shards; the bytes do not depend on how the batches were sharded.

    Raises:
        TrialError: Two shards saw the same batch, or a blob is damaged.
    """
    out = CalibrationStatistics()
    for blob in blobs:
        shard = CalibrationStatistics.from_bytes(blob)
        out.histograms = out.histograms and shard.histograms
        for name, stats in shard.tensors.items():
            if name in out.tensors:
                out.tensors[name].merge(name, stats)
            else:
                out.tensors[name] = stats
        for name, moments in shard.moments.items():
            if name in out.moments:
                out.moments[name].merge(moments)
            else:
                out.moments[name] = moments
        for name, channels in shard.channels.items():
            out.add_channels(name, channels)
    return out.to_bytes()


def _read_tensors(blob: bytes) -> tuple[bool, dict[str, TensorStatistics], bytes]:
    """Whether there are histograms, what ``CalibrationStatistics.to_bytes`` wrote of tensors, the bytes behind it."""
    if not blob.startswith(_MAGIC):
        raise TrialError("calibration statistics are damaged or of another version of distune: calibrate again")
    decompressor = zlib.decompressobj()
    data = decompressor.decompress(blob[len(_MAGIC) :])
    (size,) = struct.unpack_from("<Q", data)
    at = 8 + size
    tensors: dict[str, TensorStatistics] = {}
    has_histograms, *entries = json.loads(data[8:at])
    for name, batches, counted, nonfinite, *spans in entries:
        histograms = []
        for exponent, start, stop in spans:
            histogram = Histogram(exponent)
            histogram.counts[start:stop] = np.frombuffer(data, "<i8", stop - start, at)
            at += 8 * (stop - start)
            histograms.append(histogram)
        rows = np.frombuffer(data, "<f4", 4 * len(batches), at).reshape(-1, 4)
        at += rows.nbytes
        bounds = {b: (float(r[0]), float(r[1]), float(r[2]), float(r[3])) for b, r in zip(batches, rows, strict=True)}
        tensors[name] = TensorStatistics(bounds, histograms[0], histograms[1], counted, nonfinite)
    return has_histograms, tensors, decompressor.unused_data


def _min_max(values: NDArray[np.float32]) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (math.inf, -math.inf)
