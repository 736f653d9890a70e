"""Calibration algorithms: ranges made of batches' extremes or of a histogram of all values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distune.backends.histogram import BINS, Histogram

_MOVING_WEIGHT = 0.01
_KL_BINS = 2048
_KL_STEP = 16
_KL_VALUES_PER_BIN = 4


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range that leaves out ``(100 - percentile) / 2`` percent of the values at each end."""
    tail = (100.0 - percentile) / 200.0 * histogram.total
    cumulated = np.cumsum(histogram.counts)
    first = int(np.searchsorted(cumulated, tail, side="right"))
    last = int(np.searchsorted(cumulated, histogram.total - tail, side="left"))
    return (first - BINS) * histogram.width, (last + 1 - BINS) * histogram.width


def moving_average(ranges: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the batches' ``ranges`` [batches, 2], averaged exponentially in the order of the batches.

    B. Jacob et al., arXiv:1712.05877, section 3.1, with the weight of a new batch that PyTorch's observer has.
    """
    low, high = ranges[0]
    for below, above in ranges[1:]:
        low += _MOVING_WEIGHT * (below - low)
        high += _MOVING_WEIGHT * (above - high)
    return float(low), float(high)


def kl_range(histogram: Histogram) -> tuple[float, float]:
    """The clipping threshold whose quantized distribution has the least Kullback-Leibler divergence from the real one.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017 (S7310), slides 33-38: for every threshold the outliers are
    added to the outermost bin, the rest is quantized to the available levels and expanded again over its non-empty
    bins. Here over 2048 bins of magnitude, 128 levels (256 where the tensor has one sign and so all levels), and the
    threshold applies to both signs.
    """
    positive, negative = histogram.counts[BINS:], histogram.counts[:BINS][::-1]
    levels = 128 if positive.any() and negative.any() else 256
    magnitudes = positive + negative
    used = int(np.flatnonzero(magnitudes)[-1]) + 1
    # A distribution of few values is mostly empty bins, in which clipping looks cheap: fewer, then none to choose from.
    factor = -(-used // max(min(_KL_BINS, int(magnitudes.sum()) // _KL_VALUES_PER_BIN), levels))
    bins = np.add.reduceat(magnitudes[: -(-used // factor) * factor], np.arange(0, used, factor)).astype(np.float64)
    if len(bins) > 1:
        bins[0] = bins[1]  # zeros, of which Relu makes many, are represented exactly: they must not decide
    tails = np.concatenate([np.cumsum(bins[::-1])[::-1][1:], [0.0]])
    best, threshold = math.inf, len(bins)
    for count in [*range(levels, len(bins), _KL_STEP), len(bins)]:
        reference = bins[:count].copy()
        reference[-1] += tails[count - 1]
        edges = np.arange(min(levels, count)) * count // min(levels, count)
        present = bins[:count] > 0
        sums = np.add.reduceat(bins[:count], edges)
        filled = np.maximum(np.add.reduceat(present.astype(np.float64), edges), 1.0)
        expanded = np.repeat(sums / filled, np.diff(np.append(edges, count))) * present
        divergence = _kl_divergence(reference, expanded)
        if divergence < best:
            best, threshold = divergence, count
    limit = threshold * factor * histogram.width
    return -limit, limit


def _kl_divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    total = candidate.sum()
    if total == 0:
        return math.inf
    p, q = reference / reference.sum(), candidate / total
    # A bin that the candidate lost altogether (only outliers fell there) would cost infinitely: smoothed.
    q = np.where((p > 0) & (q == 0), 1e-9, q)
    at = p > 0
    return float((p[at] * np.log(p[at] / q[at])).sum())


__all__ = ["kl_range", "moving_average", "percentile_range"]
