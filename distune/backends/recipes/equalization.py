"""Cross-layer equalization: weights of neighbouring layers are rescaled so that channels have like ranges.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019 (arXiv:1906.04721), section 4.1. A positive factor a channel passes through Relu, so dividing the
outputs of one layer by ``s`` and multiplying the inputs of the next by it leaves the fp32 model as it was; with
``s = sqrt(r1 * r2) / r2`` both layers' channels have the range ``sqrt(r1 * r2)`` (equation 11).

A clip to 0 ... max would cut a rescaled channel elsewhere. The authors replace ReLU6 by ReLU, which costs the
MobileNetV1 of our tests a quarter of its accuracy. Here the clip stays, and a channel moves only as far as the clip
does nothing to it on the calibration data, neither before nor after: ``s >= MARGIN * high / max``; one that reaches the
cut stays. Without a clip no channel moves beyond the largest one, since activations have one range a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.channel_statistics import ChannelStatistics, channel_key
from distune.backends.recipes.layer import Layer

_SWEEPS = 40
_SETTLED = 1e-4
"""Largest change of a factor's logarithm in a sweep that counts as none."""

MARGIN = 1.25
"""How far below a clip's cut the calibrated maximum of a channel has to stay."""

FARTHEST = 100.0
"""Largest factor, and its inverse the smallest: channels that are never active would go anywhere."""


@dataclass(frozen=True)
class Pair:
    """Two layers with nothing between them but one activation at most, a Relu or a clip from 0 on.

    Attributes:
        cut: Where the clip cuts; ``None`` where nothing does.
    """

    first: Layer
    second: Layer
    cut: float | None = None


def equalized(
    pairs: Sequence[Pair], constant: Callable[[str], NDArray[Any]], channels: Mapping[str, ChannelStatistics]
) -> dict[str, NDArray[np.float64]]:
    """Weights and biases, by name, under which every pair of layers is equalized.

    Args:
        pairs: In graph order.
        constant: Gives the weight or bias of a name.
        channels: Of the inputs of layers, by ``channel_key``.
    """
    members = (layer for pair in pairs for layer in (pair.first, pair.second))
    weights = {layer.weight: constant(layer.weight).astype(np.float64) for layer in members}
    biases = {p.first.bias: constant(p.first.bias).astype(np.float64) for p in pairs if p.first.bias}
    bounds = {pair.second.input: _bounds(pair, channels) for pair in pairs}
    total = {pair.second.input: np.ones(pair.second.inputs) for pair in pairs}
    for _ in range(_SWEEPS):
        moved = 0.0
        for pair in pairs:
            before = total[pair.second.input]
            total[pair.second.input] = np.clip(before * _factors(pair, weights), *bounds[pair.second.input])
            factors = total[pair.second.input] / before
            moved = max(moved, float(np.abs(np.log(factors)).max()))
            first, second = pair.first, pair.second
            weights[first.weight] = first.scale_outputs(weights[first.weight], 1 / factors)
            weights[second.weight] = second.scale_inputs(weights[second.weight], factors)
            if first.bias:
                biases[first.bias] = biases[first.bias] / factors
        if moved < _SETTLED:
            break
    return {**weights, **biases}


def _factors(pair: Pair, weights: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """By how much the first layer's outputs are divided; 1 for channels that one side does not use."""
    first = pair.first.output_peaks(weights[pair.first.weight])
    second = pair.second.input_peaks(weights[pair.second.weight])
    usable = (first > 0) & (second > 0)
    ratio = np.divide(first, second, out=np.ones_like(first), where=usable)
    factors: NDArray[np.float64] = np.sqrt(ratio)
    return factors


def _bounds(pair: Pair, channels: Mapping[str, ChannelStatistics]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest factor of each channel.

    No channel may come to exceed what the tensor reaches already: its one range would grow for all of them. Under a
    clip a channel may come near the cut at most, and one that is near it stays as it is.
    """
    lowest = np.full(pair.second.inputs, 1 / FARTHEST)
    highest = np.full(pair.second.inputs, FARTHEST)
    seen = channels.get(channel_key(pair.second.input, pair.second.channel_axis))
    if seen is None:
        return (lowest, highest) if pair.cut is None else (np.ones_like(lowest), np.ones_like(highest))
    peak = seen.peak.astype(np.float64)
    share = peak / (peak.max() or 1.0) if pair.cut is None else MARGIN * peak / pair.cut
    stays = share >= 1 if pair.cut is not None else np.zeros(len(share), bool)
    return np.where(stays, 1, np.maximum(lowest, np.minimum(share, 1))), np.where(stays, 1, highest)


__all__ = ["FARTHEST", "MARGIN", "Pair", "equalized"]
