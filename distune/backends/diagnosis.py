"""How far the tensors of a quantized model are from fp32's: ranges, histograms, MSE, SQNR, saturation.

Two passes over the same batches, so that no tensor is kept: the first finds the ranges, the second counts into bins
over them. What is kept is ``BINS`` counts a tensor and side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 64


class TensorComparison:
    """One tensor in fp32 and as the quantized model has it; feed ``see_range`` every batch, then ``count``.

    Values that are not finite in fp32 (masks) are left out of everything.
    """

    def __init__(self) -> None:
        self._low, self._high = [math.inf, math.inf], [-math.inf, -math.inf]
        self._counts = [np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)]
        self._error = self._power = 0.0
        self._values = self._outside = 0

    def see_range(self, fp32: NDArray[Any], quantized: NDArray[Any]) -> None:
        """First pass: widen the ranges."""
        for side, values in enumerate(_finite(fp32, quantized)):
            if values.size:
                self._low[side] = min(self._low[side], float(values.min()))
                self._high[side] = max(self._high[side], float(values.max()))

    def count(self, fp32: NDArray[Any], quantized: NDArray[Any]) -> None:
        """Second pass: count and sum up."""
        expected, actual = _finite(fp32, quantized)
        if not expected.size:
            return
        edges = self._edges()
        for side, values in enumerate((expected, actual)):
            self._counts[side] += np.histogram(values, edges)[0]
        difference = actual - expected
        self._error += float(difference @ difference)
        self._power += float(expected @ expected)
        self._values += expected.size
        # A value that clipping moved lies beyond every value that the quantized side takes.
        slack = (self._high[1] - self._low[1]) / 512
        self._outside += int(np.count_nonzero((expected < self._low[1] - slack) | (expected > self._high[1] + slack)))

    def result(self) -> dict[str, Any]:
        """Plain values; ``sqnr_db`` is ``None`` where there is no error or no signal.

        ``saturation`` is the share of fp32's values beyond the range that the quantized tensor reaches.
        """
        if not self._values:
            return {}
        ratio = self._power / self._error if self._error else 0.0
        return {
            "mse": self._error / self._values,
            "sqnr_db": 10 * math.log10(ratio) if ratio > 0 else None,
            "saturation": self._outside / self._values,
            "fp32_range": [self._low[0], self._high[0]],
            "quantized_range": [self._low[1], self._high[1]],
            "edges": [float(edge) for edge in self._edges()],
            "counts": [int(count) for count in self._counts[0]],
            "quantized_counts": [int(count) for count in self._counts[1]],
            "clip": [self._low[1], self._high[1]],
        }

    def _edges(self) -> NDArray[np.float64]:
        low, high = min(self._low), max(self._high)
        if low == high:
            low, high = low - 0.5, high + 0.5
        return np.linspace(low, high, BINS + 1)


def _finite(fp32: NDArray[Any], quantized: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    keep = np.isfinite(fp32) & np.isfinite(quantized) & (np.abs(fp32) < _MASKED)
    return fp32[keep].astype(np.float64), quantized[keep].astype(np.float64)


_MASKED = 1e30
"""fp32 values as large as this are masks (-3.4e38), not signals."""

__all__ = ["BINS", "TensorComparison"]
