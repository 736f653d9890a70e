"""AWQ: make the weights of important input channels larger before rounding, and the inputs smaller to match.

Source: J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
arXiv:2306.00978, section 3.2: scales ``s = a**alpha`` of the mean magnitude ``a`` of each channel, alpha by search over
the error of the layer's output, then ranges by search. The error ``|X W - X Q|`` is computed from ``X^T X``, so no
activation is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distune.backends.weight_only.grouped import Float, GroupedWeight, WeightFormat, quantized
from distune.backends.weight_only.range_search import searched_parameters
from distune.backends.weight_only.rtn import rtn


@dataclass(frozen=True)
class AwqSettings:
    """Settings of AWQ (recipe ``awq_args``).

    Attributes:
        enable_auto_scale: Search the scales of the input channels.
        enable_mse_search: Search the range of each group.
        grid: Values of alpha from 0 to 1.
    """

    enable_auto_scale: bool = True
    enable_mse_search: bool = True
    grid: int = 21


def awq(
    weight: Float,
    moments: NDArray[np.float64],
    magnitude: NDArray[np.float64],
    form: WeightFormat,
    settings: AwqSettings = AwqSettings(),
) -> GroupedWeight:
    """Quantize ``weight`` [K, N]. On the calibration inputs the output is never further off than with RTN.

    Args:
        moments: ``X^T X`` of the inputs, float64 [K, K].
        magnitude: Mean of ``|X|`` by channel, float64 [K].
    """
    weight = weight.astype(np.float32)
    best = rtn(weight, form)
    least = output_error(weight, best, moments)
    if settings.enable_auto_scale:
        for alpha in np.linspace(0.0, 1.0, settings.grid)[1:]:
            scale = _scale(magnitude, float(alpha))
            plain = rtn(weight * scale[:, None], form)
            candidate = GroupedWeight(plain.integers, plain.scales, plain.zero_points, form, scale)
            error = output_error(weight, candidate, moments)
            if error < least:
                best, least = candidate, error
    if settings.enable_mse_search:
        candidate = _with_searched_ranges(weight, best, moments)
        if output_error(weight, candidate, moments) < least:
            best = candidate
    return best


def output_error(weight: Float, candidate: GroupedWeight, moments: NDArray[np.float64]) -> float:
    """Squared error of the layer's outputs, summed: ``trace(D^T X^T X D)`` with the error D of the weight."""
    difference = weight.astype(np.float64) - candidate.effective()
    return float((difference * (moments @ difference)).sum())


def _with_searched_ranges(weight: Float, found: GroupedWeight, moments: NDArray[np.float64]) -> GroupedWeight:
    scale = found.input_scale
    if scale is None:
        scaled, curvature = weight, moments
    else:
        scaled, curvature = weight * scale[:, None], moments / np.outer(scale, scale).astype(np.float64)
    ranges = searched_parameters(scaled, np.ones(len(weight)), found.format, curvature)
    return quantized(scaled, *ranges, found.format, scale)


def _scale(magnitude: NDArray[np.float64], alpha: float) -> NDArray[np.float32]:
    """``magnitude**alpha``, normalised so that the largest and the smallest are inverse to each other."""
    floor = 1e-4 * float(magnitude.max()) or 1.0
    scale = np.maximum(magnitude, floor) ** alpha
    scale /= np.sqrt(scale.max() * scale.min())
    return scale.astype(np.float32)
