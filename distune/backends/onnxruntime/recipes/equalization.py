"""Cross-layer equalization: weights of neighbouring layers are rescaled so that channels have like ranges.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019 (arXiv:1906.04721), section 4.1. A positive factor a channel passes through Relu, so dividing the
outputs of one layer by ``s`` and multiplying the inputs of the next by it leaves the fp32 model as it was; with
``s = sqrt(r1 * r2) / r2`` both layers' channels have the range ``sqrt(r1 * r2)`` (equation 11).

A Clip(0, max) would cut a rescaled channel elsewhere. The authors replace ReLU6 by ReLU, which costs the MobileNetV1 of
our tests a quarter of its accuracy. Here the Clip stays, and a channel moves only as far as the Clip does nothing to
it on the calibration data, neither before nor after: ``s >= MARGIN * high / max``; one that reaches the cut stays.
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
    highest = {pair.second.input: _room(model.index, pair, channels) for pair in found}
    for _ in range(_SWEEPS):
        moved = 0.0
        for pair in found:
            factors = np.maximum(_factors(pair, weights), highest[pair.second.input])
            factors[highest[pair.second.input] >= 1] = 1
            highest[pair.second.input] = highest[pair.second.input] / factors
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


def _room(index: GraphIndex, pair: Pair, channels: Mapping[str, ChannelStatistics]) -> NDArray[np.float64]:
    """Calibrated maximum of each channel, as a share of where the Clip cuts; zeros where there is no Clip."""
    if pair.activation is None or pair.activation.op_type != "Clip" or len(pair.activation.input) < 3:
        return np.zeros(pair.second.inputs)
    cut = float(constant(index, pair.activation.input[2]))
    seen = channels.get(channel_key(pair.second.input, pair.second.channel_axis))
    if seen is None:
        return np.ones(pair.second.inputs)
    return MARGIN * seen.high.astype(np.float64) / cut


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
