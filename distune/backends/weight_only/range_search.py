"""Ranges smaller than the values: saturating a few outliers can cost less than wide steps cost all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distune.backends.weight_only.grouped import Float, WeightFormat, grouped, parameters_of_range, rounded

SHRINKS = np.linspace(1.0, 0.5, 21)
"""Factors of the range that are tried, the whole range first."""


def searched_parameters(
    weight: Float,
    importance: NDArray[np.float64],
    form: WeightFormat,
    moments: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points [groups, N] with the smallest error of each group and output.

    Args:
        weight: [K, N].
        importance: [K], factor of a channel's error where there are no ``moments``.
        moments: ``X^T X`` of the inputs [K, K]: the error is then that of the group's part of the output, as in AWQ.
    """
    channels = len(weight)
    size = form.group(channels)
    values = grouped(weight.astype(np.float64), size)
    factor = grouped(importance[:, None], size)
    curvature = None if moments is None else _diagonal_blocks(moments, size)
    low, high = values.min(axis=1), values.max(axis=1)
    best: Float = np.full(low.shape, np.inf)
    scales = np.empty(low.shape, np.float32)
    zero_points = np.empty(low.shape, np.float32)
    for shrink in SHRINKS:
        candidate = parameters_of_range(low * shrink, high * shrink, form)
        difference = values - rounded(values, *candidate, form)
        if curvature is None:
            error = np.square(difference * factor).sum(axis=1)
        else:
            error = (difference * (curvature @ difference)).sum(axis=1)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, candidate[0], scales)
        zero_points = np.where(better, candidate[1], zero_points)
    return scales, zero_points


def _diagonal_blocks(moments: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The blocks [groups, size, size] on the diagonal; the last is filled up with zeros."""
    channels = len(moments)
    groups = -(-channels // size)
    out = np.zeros((groups, size, size))
    for group in range(groups):
        start, stop = group * size, min((group + 1) * size, channels)
        out[group, : stop - start, : stop - start] = moments[start:stop, start:stop]
    return out
