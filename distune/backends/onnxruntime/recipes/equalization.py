"""Cross-layer equalization of an ONNX graph: which layers are neighbours, and their new constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import onnx

from distune.backends.channel_statistics import ChannelStatistics
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.layers import constant, layers, set_constant
from distune.backends.recipes.equalization import Pair, equalized


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
    found = [pair for pair in pairs(model) if pair.first.is_conv or not only_convs]
    for name, values in equalized(found, partial(constant, model.index), channels).items():
        set_constant(proto, name, values)
    return proto


def _pairs(model: PreparedModel) -> Iterator[Pair]:
    index = model.index
    by_input = {layer.input: layer for layer in layers(model)}
    for first in layers(model):
        if first.adds_computed or not _owned(index, first.weight) or (first.bias and not _owned(index, first.bias)):
            continue
        tensor, activation = first.output, None
        after = index.only_consumer(tensor)
        if after is not None and _is_homogeneous(index, after):
            activation, tensor = after, after.output[0]
        second, reader = by_input.get(tensor), index.only_consumer(tensor)
        if (
            second is not None
            and reader is not None
            and reader.name == second.name
            and _owned(index, second.weight)
            and second.inputs == first.outputs
            and first.is_conv == second.is_conv
        ):
            yield Pair(first, second, _cut(index, activation))


def _cut(index: GraphIndex, activation: onnx.NodeProto | None) -> float | None:
    """Where a Clip cuts; ``None`` where nothing does."""
    if activation is None or activation.op_type != "Clip" or len(activation.input) < 3 or not activation.input[2]:
        return None
    return float(constant(index, activation.input[2]))


def _owned(index: GraphIndex, tensor: str) -> bool:
    """One node alone reads a constant, and it is no output of the graph."""
    return index.only_consumer(tensor) is not None


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
