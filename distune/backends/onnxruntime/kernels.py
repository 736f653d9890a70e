"""Rewrites of a quantized graph that change no number and let ONNX Runtime take faster kernels.

* A Pad between a DequantizeLinear and a QuantizeLinear of one scale pads integers, with their zero point.
* The short cut of a residual network that takes every n-th pixel and adds channels of zeros is one convolution by a
  weight of ones, where it was a Slice and a Pad (ResNet-20: 3%).
* Input channels of a convolution are filled up to a multiple of 4, with zeros in the weight: the kernels for symmetric
  weights take 4 at a time, and a first layer of 3 colours runs on a generic one without this (ResNet-20: 5% of the
  whole at batch 1, MobileNetV1: 6%).
* Where the processor multiplies tiles of integers (AMX), integers and zero point of a large weight are both moved by
  one. ONNX Runtime takes its convolution kernel for weights whose zero point is 0, which is written for AVX, and its
  matrix product, which knows AMX, for others. A weight of 512 x 512 takes 0.64 of the time, 3 x 3 of 512 x 512 0.47.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames, attribute, replace_nodes, tensors_read
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.simplify import zero_pads
from distune.backends.onnxruntime.weights import add_constant, drop_unused_constants

_LARGE_WEIGHT = 1 << 15
"""Elements from which on AMX is faster: below, packing the image for a matrix product costs more than it saves.
Measured with weights of 64 x 64 to 2048 x 512, 1 x 1, 3 x 3 and 5 x 5, images of 3 x 3 to 56 x 56 and batches of 1 and
8; it loses where a large image meets a barely large weight only (64 channels of 56 x 56, 3 x 3: 1.14)."""

_FEW_CHANNELS = 32
"""Input channels up to which 1 to 3 more cost less than the generic kernel."""

_SHORT_CUT_CHANNELS = 64
"""Input channels up to which multiplying by ones is faster than copying."""

_PAD_OF_INTEGERS = 13
"""Opset since which Pad takes 8-bit integers and their zero point."""


def use_fast_kernels(proto: onnx.ModelProto, fp32: onnx.ModelProto, amx: bool) -> None:
    """Rewrite a quantized model in place.

    Args:
        proto: With Q/DQ pairs; its nodes have names.
        fp32: What it was made of, with inferred shapes.
        amx: The processor that it is for has AMX, for 8-bit integers.
    """
    changed = False
    if next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0) >= _PAD_OF_INTEGERS:
        if _pad_integers(proto):
            changed = True
            _join_short_cuts(proto, fp32)
        changed |= _fill_channels(proto)
    if amx:
        changed |= _multiply_tiles(proto)
    if changed:
        drop_unused_constants(proto)


def _pad_integers(proto: onnx.ModelProto) -> bool:
    """Q(Pad(DQ(x))) becomes Pad(x), which pads with the zero point. Whether there was any."""
    index, unused = GraphIndex(proto), UnusedNames(proto)
    unread: set[str] = set()
    for pad in proto.graph.node:
        source = index.producer.get(pad.input[0]) if pad.op_type == "Pad" else None
        target = index.only_consumer(pad.output[0])
        if source is None or source.op_type != "DequantizeLinear" or zero_pads(index, pad) is None:
            continue
        if target is None or target.op_type != "QuantizeLinear" or not _same_scale(index, source, target):
            continue
        inputs = [source.input[0], pad.input[1], source.input[2]]
        del pad.input[:]
        pad.input.extend(inputs)
        pad.output[0] = target.output[0]
        target.output[0] = unused(f"{target.output[0]}_unread")
        unread.update((*target.output, *source.output))
    _remove_unread(proto, unread)
    return bool(unread)


def _join_short_cuts(proto: onnx.ModelProto, fp32: onnx.ModelProto) -> None:
    """Pad(Q(Slice(DQ(x)))) becomes Q(Conv(DQ(x), ones)), where Pad adds channels and both scales are the same.

    The weight is of shape channels out x channels in x 1 x 1, int8: a 1 where an input channel goes, at scale 1. So
    the kernel's factor from sums to outputs is 1, and every integer comes out as it was.
    """
    index, unused = GraphIndex(proto), UnusedNames(proto)
    dims = {value.name: value.type.tensor_type.shape.dim for value in fp32.graph.value_info}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for pad in proto.graph.node:
        quantize = index.producer.get(pad.input[0]) if pad.op_type == "Pad" else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or index.only_consumer(pad.input[0]) is None:
            continue
        cut = index.producer.get(quantize.input[0])
        source = index.producer.get(cut.input[0]) if cut is not None else None
        if cut is None or source is None or source.op_type != "DequantizeLinear":
            continue
        steps = _pixel_steps(index, cut)
        known = dims.get(cut.output[0], ())
        channels = known[1].dim_value if len(known) == 4 else 0
        added = [int(count) for count in values_of(index.initializers[pad.input[1]])]
        if steps is None or not 0 < channels <= _SHORT_CUT_CHANNELS or any(added[i] for i in (0, 2, 3, 4, 6, 7)):
            continue
        if min(added) < 0 or index.only_consumer(cut.output[0]) is None or not _same_scale(index, source, quantize):
            continue
        if index.element_type.get(quantize.input[2]) != TensorProto.UINT8:
            continue
        ones = np.zeros((added[1] + channels + added[5], channels, 1, 1), np.int8)
        ones[added[1] : added[1] + channels, :, 0, 0] = np.eye(channels, dtype=np.int8)
        constants = (ones, np.ones(len(ones), np.float32), np.zeros(len(ones), np.int8))
        inputs = [add_constant(proto, unused(f"{pad.name}_ones"), constant) for constant in constants]
        weight, dequantize, conv = map(unused, (f"{pad.name}_{new}" for new in ("weight", "DequantizeLinear", "Conv")))
        replaced[cut.name] = [
            helper.make_node("DequantizeLinear", inputs, [weight], dequantize, axis=0),
            helper.make_node("Conv", [source.output[0], weight], [cut.output[0]], conv, strides=steps),
        ]
        quantize.output[0] = pad.output[0]
        replaced[pad.name] = []
    if replaced:
        replace_nodes(proto, replaced)


def _pixel_steps(index: GraphIndex, node: onnx.NodeProto) -> list[int] | None:
    """Steps along rows and columns of a Slice of every n-th pixel, from the first to the last; ``None`` of others."""
    if (
        node.op_type != "Slice"
        or len(node.input) != 5
        or any(name not in index.initializers for name in node.input[1:])
    ):
        return None
    starts, ends, axes, steps = (values_of(index.initializers[name]).tolist() for name in node.input[1:])
    if sorted(axes) != [2, 3] or any(starts) or min(ends) < np.iinfo(np.int32).max or min(steps) < 1:
        return None
    return [int(step) for _, step in sorted(zip(axes, steps, strict=True))]


def _fill_channels(proto: onnx.ModelProto) -> bool:
    """Pad a convolution's image with channels of its zero point, its weight with zeros. Whether there was any."""
    index, unused = GraphIndex(proto), UnusedNames(proto)
    replaced: dict[str, list[onnx.NodeProto]] = {}
    unread: set[str] = set()
    for conv, source, weight, values in _symmetric_convolutions(index, proto):
        channels = values.shape[1]
        missing = -channels % 4
        if not missing or channels > _FEW_CHANNELS or values.ndim != 4:
            continue
        filled = np.concatenate([values, np.zeros((len(values), missing, *values.shape[2:]), values.dtype)], axis=1)
        weight.input[0] = add_constant(proto, unused(f"{weight.input[0]}_filled"), filled)
        pads = add_constant(proto, unused(f"{conv.name}_channels"), np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
        name = unused(f"{conv.input[0]}_{conv.name}_filled")
        padded, pad_name, dequantize_name = (
            unused(f"{name}_{new}") for new in ("quantized", "Pad", "DequantizeLinear")
        )
        pad = helper.make_node("Pad", [source.input[0], pads, source.input[2]], [padded], pad_name)
        dequantize = onnx.NodeProto()
        dequantize.CopyFrom(source)
        dequantize.name, dequantize.input[0], dequantize.output[0] = dequantize_name, padded, name
        replaced[conv.name] = [pad, dequantize, conv]
        unread.update(source.output)
        conv.input[0] = name
    if replaced:
        replace_nodes(proto, replaced)
        _remove_unread(proto, unread)
    return bool(replaced)


def _multiply_tiles(proto: onnx.ModelProto) -> bool:
    """Move integers and zero point of large weights by one, where no integer leaves int8. Whether there was any."""
    index, unused = GraphIndex(proto), UnusedNames(proto)
    changed = False
    for _, _, weight, values in _symmetric_convolutions(index, proto):
        if values.size < _LARGE_WEIGHT:
            continue
        step = -1 if values.min() > np.iinfo(np.int8).min else 1
        if step == 1 and values.max() == np.iinfo(np.int8).max:
            continue
        zero_point = values_of(index.initializers[weight.input[2]])
        weight.input[0] = add_constant(proto, unused(f"{weight.input[0]}_moved"), values + np.int8(step))
        weight.input[2] = add_constant(proto, unused(f"{weight.input[2]}_moved"), np.full_like(zero_point, step))
        changed = True
    return changed


def _symmetric_convolutions(
    index: GraphIndex, proto: onnx.ModelProto
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto, NDArray[np.int8]]]:
    """Convolutions of one group, of uint8 images by constant int8 weights with zero point 0.

    Yields:
        The Conv, the DequantizeLinear of its image, that of its weight (which nothing else reads), and the weight's
        integers, of shape channels out x channels in x kernel.
    """
    for node in list(proto.graph.node):
        if node.op_type != "Conv" or attribute(node, "group", 1) != 1:
            continue
        image, weight = (index.producer.get(name) for name in node.input[:2])
        if image is None or weight is None or image.op_type != "DequantizeLinear" or weight.op_type != image.op_type:
            continue
        if len(image.input) < 3 or len(weight.input) < 3 or index.only_consumer(weight.output[0]) is None:
            continue
        integers, zero_point = (index.initializers.get(name) for name in (weight.input[0], weight.input[2]))
        if integers is None or zero_point is None or integers.data_type != TensorProto.INT8:
            continue
        if index.element_type.get(image.input[2]) == TensorProto.UINT8 and not values_of(zero_point).any():
            yield node, image, weight, values_of(integers)


def _same_scale(index: GraphIndex, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    """Whether both have the same constants for scale and zero point, one of each for the whole tensor."""
    if len(dequantize.input) < 3 or len(quantize.input) < 3:
        return False
    for names in zip(dequantize.input[1:], quantize.input[1:], strict=True):
        left, right = (index.initializers.get(name) for name in names)
        if left is None or right is None or left.data_type != right.data_type:
            return False
        a, b = values_of(left), values_of(right)
        if a.size != 1 or not np.array_equal(a.ravel(), b.ravel()):
            return False
    return True


def _remove_unread(proto: onnx.ModelProto, candidates: set[str]) -> None:
    """Remove QuantizeLinear and DequantizeLinear nodes whose output is among the ``candidates`` and read by nobody."""
    read = {name for node in proto.graph.node for name in tensors_read(node)}
    read |= {value.name for value in proto.graph.output}
    unread = [
        position
        for position, node in enumerate(proto.graph.node)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and node.output[0] in candidates
        and node.output[0] not in read
    ]
    for position in reversed(unread):
        del proto.graph.node[position]
