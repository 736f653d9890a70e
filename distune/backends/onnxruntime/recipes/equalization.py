"""Cross-layer equalization: weights of neighbouring layers are rescaled so that channels have like ranges.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019 (arXiv:1906.04721), section 4.1. A positive factor a channel passes through Relu, so dividing the
outputs of one layer by ``s`` and multiplying the inputs of the next by it leaves the fp32 model as it was; with
``s = sqrt(r1 * r2) / r2`` both layers' channels have the range ``sqrt(r1 * r2)`` (equation 11).

A Clip(0, max) would cut a rescaled channel elsewhere. The authors replace ReLU6 by ReLU, which costs the MobileNetV1 of
our tests a quarter of its accuracy. Here the Clip stays, and a channel moves only as far as the Clip does nothing to
it on the calibration data, neither before nor after: ``s >= MARGIN * high / max``; one that reaches the cut stays.
Without a Clip no channel moves beyond the largest one, since activations have one range a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from distune.backends.channel_statistics import ChannelStatistics, channel_key
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.layers import Layer, constant, layers, set_constant

_SWEEPS = 40
_SETTLED = 1e-4
"""Largest change of a factor's logarithm in a sweep that counts as none."""

MARGIN = 1.25
"""How far below a Clip's cut the calibrated maximum of a channel has to stay."""

FARTHEST = 100.0
"""Largest factor, and its inverse the smallest: channels that are never active would go anywhere."""


@dataclass(frozen=True)
class Pair:
    """Two layers with nothing between them but one activation at most.

    Attributes:
        activation: The Relu or Clip between them, ``None`` where they follow each other directly.
    """

    first: Layer
    second: Layer
    activation: onnx.NodeProto | None


def pairs(model: PreparedModel) -> tuple[Pair, ...]:
    """The pairs of layers that can be equalized, in graph order."""
    return tuple(_pairs(model))


def equalize(
    model: PreparedModel, channels: Mapping[str, ChannelStatistics], only_convs: bool = False
) -> onnx.ModelProto:
    """A copy of the model in which every pair of layers is equalized.

    Args:
        channels: Of the inputs of layers, by ``channel_key``.
        only_convs: Leave Gemm and MatMul as they are.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    found = tuple(pair for pair in pairs(model) if pair.first.is_conv or not only_convs)
    weights = {layer.weight: constant(model.index, layer.weight).astype(np.float64) for layer in _members(found)}
    biases = {p.first.bias: constant(model.index, p.first.bias).astype(np.float64) for p in found if p.first.bias}
    bounds = {pair.second.input: _bounds(model.index, pair, channels) for pair in found}
    total = {pair.second.input: np.ones(pair.second.inputs) for pair in found}
    for _ in range(_SWEEPS):
        moved = 0.0
        for pair in found:
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
    for name, values in (*weights.items(), *biases.items()):
        set_constant(proto, name, values)
    return proto


def _pairs(model: PreparedModel) -> Iterator[Pair]:
    index = model.index
    by_input = {layer.input: layer for layer in layers(model)}
    for first in layers(model):
        if not _owns(index, first, first.weight) or (first.bias and not _owns(index, first, first.bias)):
            continue
        tensor, activation = first.output, None
        after = index.only_consumer(tensor)
        if after is not None and _is_homogeneous(index, after):
            activation, tensor = after, after.output[0]
        second = by_input.get(tensor)
        if (
            second is not None
            and index.only_consumer(tensor) is second.node
            and _owns(index, second, second.weight)
            and second.inputs == int(np.prod(first.matrix(constant(index, first.weight)).shape[:2]))
            and first.is_conv == second.is_conv
        ):
            yield Pair(first, second, activation)


def _factors(pair: Pair, weights: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """By how much the first layer's outputs are divided; 1 for channels that one side does not use."""
    first = pair.first.output_peaks(weights[pair.first.weight])
    second = pair.second.input_peaks(weights[pair.second.weight])
    usable = (first > 0) & (second > 0)
    ratio = np.divide(first, second, out=np.ones_like(first), where=usable)
    factors: NDArray[np.float64] = np.sqrt(ratio)
    return factors


def _bounds(
    index: GraphIndex, pair: Pair, channels: Mapping[str, ChannelStatistics]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest factor of each channel.

    No channel may come to exceed what the tensor reaches already: its one range would grow for all of them. Under a
    Clip a channel may come near the cut at most, and one that is near it stays as it is.
    """
    lowest = np.full(pair.second.inputs, 1 / FARTHEST)
    highest = np.full(pair.second.inputs, FARTHEST)
    seen = channels.get(channel_key(pair.second.input, pair.second.channel_axis))
    cut = _cut(index, pair.activation)
    if seen is None:
        return (lowest, highest) if cut is None else (np.ones_like(lowest), np.ones_like(highest))
    peak = seen.peak.astype(np.float64)
    share = peak / (peak.max() or 1.0) if cut is None else MARGIN * peak / cut
    stays = share >= 1 if cut is not None else np.zeros(len(share), bool)
    return np.where(stays, 1, np.maximum(lowest, np.minimum(share, 1))), np.where(stays, 1, highest)


def _cut(index: GraphIndex, activation: onnx.NodeProto | None) -> float | None:
    """Where a Clip cuts; ``None`` where nothing does."""
    if activation is None or activation.op_type != "Clip" or len(activation.input) < 3 or not activation.input[2]:
        return None
    return float(constant(index, activation.input[2]))


def _members(found: tuple[Pair, ...]) -> Iterator[Layer]:
    for pair in found:
        yield pair.first
        yield pair.second


def _owns(index: GraphIndex, layer: Layer, tensor: str) -> bool:
    """Nobody else reads a constant of the layer."""
    return len(index.consumers.get(tensor, ())) == 1


def _is_homogeneous(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """A Relu, or a Clip from 0 on."""
    if node.op_type == "Relu":
        return True
    if (
        node.op_type != "Clip"
        or len(node.input) < 2
        or any(name and name not in index.initializers for name in node.input[1:])
    ):
        return False
    return bool(node.input[1]) and float(constant(index, node.input[1])) == 0.0
