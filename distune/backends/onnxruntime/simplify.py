"""Rewrites of the fp32 graph that compute the same and quantize better; ONNX Runtime's own optimizer leaves them out.

* Zero padding moves into the convolution behind it. Between quantized ops a Pad runs in fp32, with a DequantizeLinear
  and a QuantizeLinear around it (a fifth of MobileNetV1's time at batch 1), and tears the convolutions' layout apart.
* Neighbouring Slices of different axes become one.
* The bias of a Gemm becomes a vector, as integer kernels take it; one that differs by row is added behind it.
* A mean over both axes of an image is a GlobalAveragePool, which has an integer kernel; ReduceMean has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames, attribute, replace_nodes, shapes_in
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.weights import add_constant, drop_unused_constants


def simplify(model: onnx.ModelProto, user_types: dict[str, str]) -> None:
    """Carry all of them out, in place.

    Args:
        model: With inferred shapes.
        user_types: Op types by node name; those of ops that take another's place are entered.
    """
    removed = _fold_pads(model) | _join_slices(model)
    if removed:
        replace_nodes(model, dict.fromkeys(removed, ()))
    replaced = _pools(model, user_types)
    if replaced:
        replace_nodes(model, replaced)
    drop_unused_constants(model)
    if removed or replaced:
        _drop_unknown_values(model)


def vector_biases(model: onnx.ModelProto, user_types: dict[str, str]) -> None:
    """Give every Gemm of constant weight and bias a bias of one value per column, in place.

    ``beta`` is folded into it already.

    Args:
        user_types: Op types by node name; the Adds of biases that differ by row are entered.
    """
    index, unused = GraphIndex(model), UnusedNames(model)
    replaced: dict[str, Sequence[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3:
            continue
        weight, bias = (index.initializers.get(name) for name in node.input[1:3])
        columns = 0 if weight is None else weight.dims[0 if attribute(node, "transB", 0) else 1]
        if bias is None or not columns or list(bias.dims) == [columns]:
            continue
        if not has_row_bias(bias):
            vector = np.broadcast_to(values_of(bias).ravel(), columns)
            node.input[2] = add_constant(model, unused(f"{bias.name}_vector"), vector)
            continue
        product = unused(f"{node.output[0]}_product")
        add = helper.make_node("Add", [product, node.input[2]], [node.output[0]], unused(f"{node.name}_Add"))
        user_types[add.name] = "Add"
        node.output[0] = product
        del node.input[2:]
        replaced[node.name] = (node, add)
    if replaced:
        replace_nodes(model, replaced)
    drop_unused_constants(model)


def has_row_bias(bias: onnx.TensorProto | None) -> bool:
    """Whether it is the constant bias of a Gemm and may differ from row to row."""
    return bias is not None and len(bias.dims) == 2 and bias.dims[0] != 1


def zero_pads(index: GraphIndex, pad: onnx.NodeProto) -> list[int] | None:
    """The zeros that a Pad adds before and behind each axis; ``None`` where it adds anything else.

    Args:
        pad: A node that reads ``data``, ``pads`` and maybe ``constant_value``.

    Returns:
        As in ``pads``: the counts before each axis, then those behind each. ``None``, too, where they are not constant
        or are those of chosen axes.
    """
    if attribute(pad, "mode", b"constant") != b"constant":
        return None
    if not 2 <= len(pad.input) <= 3 or pad.input[1] not in index.initializers:
        return None
    if len(pad.input) == 3 and pad.input[2]:
        value = index.initializers.get(pad.input[2])
        if value is None or np.any(values_of(value)):
            return None
    return [int(count) for count in values_of(index.initializers[pad.input[1]])]


def _fold_pads(model: onnx.ModelProto) -> set[str]:
    """Add zeros around an image (batch x channels x at least one axis) to the pads of the convolution that reads it.

    Returns:
        Names of the Pads whose output nobody reads any longer.
    """
    index = GraphIndex(model)
    removed: set[str] = set()
    for pad in model.graph.node:
        added = zero_pads(index, pad) if pad.op_type == "Pad" else None
        if added is None:
            continue
        del pad.input[2:]  # a zero that is said would be quantized, too
        conv = index.only_consumer(pad.output[0])
        if conv is None or conv.op_type != "Conv" or conv.input[0] != pad.output[0]:
            continue
        padded_by_type = attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET"
        rank = len(added) // 2
        outside_of_space = any(added[:2]) or any(added[rank : rank + 2])
        if padded_by_type or rank < 3 or outside_of_space or min(added) < 0:
            continue
        spatial = added[2:rank] + added[rank + 2 :]
        own = attribute(conv, "pads", [0] * len(spatial))
        kept = [item for item in conv.attribute if item.name != "pads"]
        del conv.attribute[:]
        conv.attribute.extend(kept)
        conv.attribute.append(helper.make_attribute("pads", [a + b for a, b in zip(spatial, own, strict=True)]))
        conv.input[0] = pad.input[0]
        removed.add(pad.name)
    return removed


def _join_slices(model: onnx.ModelProto) -> set[str]:
    """Let the second of two Slices of different axes cut all of them.

    Returns:
        Names of the first ones, whose output nobody reads any longer.
    """
    index, unused = GraphIndex(model), UnusedNames(model)
    removed: set[str] = set()
    for second in model.graph.node:
        first = index.producer.get(second.input[0]) if second.op_type == "Slice" else None
        if first is None or first.op_type != "Slice" or index.only_consumer(first.output[0]) is None:
            continue
        ranges = [_slice_ranges(index, node) for node in (first, second)]
        if ranges[0] is None or ranges[1] is None or set(ranges[0]) & set(ranges[1]):
            continue
        joined = {**ranges[0], **ranges[1]}
        columns = [list(column) for column in zip(*joined.values(), strict=True)]
        inputs = [first.input[0]]
        for part, values in zip(
            ("starts", "ends", "axes", "steps"), [*columns[:2], list(joined), columns[2]], strict=True
        ):
            inputs.append(add_constant(model, unused(f"{second.name}_{part}"), np.array(values, np.int64)))
            index.initializers[inputs[-1]] = model.graph.initializer[-1]  # a third one may follow
        del second.input[:]
        second.input.extend(inputs)
        removed.add(first.name)
    return removed


def _slice_ranges(index: GraphIndex, node: onnx.NodeProto) -> dict[int, tuple[int, int, int]] | None:
    """Start, end and step by axis; ``None`` where they are not constant, or axes are counted from the last."""
    if len(node.input) < 3 or any(name and name not in index.initializers for name in node.input[1:]):
        return None
    if not index.is_float(node.input[0]):
        return None
    given: list[Sequence[int]] = [
        [int(value) for value in values_of(index.initializers[name])] if name else [] for name in node.input[1:]
    ]
    starts, ends, axes, steps = (*given, [], [])[:4]
    axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
    if min(axes, default=-1) < 0:
        return None
    return dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))


def _pools(model: onnx.ModelProto, user_types: dict[str, str]) -> dict[str, Sequence[onnx.NodeProto]]:
    """What takes the place of means over both axes of an image, by name of the node."""
    index, unused = GraphIndex(model), UnusedNames(model)
    shapes = shapes_in(model)
    replaced: dict[str, Sequence[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(shapes.get(node.input[0], ())) != 4 or not index.is_float(node.input[0]):
            continue
        axes: list[int] = attribute(node, "axes", [])
        if len(node.input) > 1 and node.input[1] in index.initializers:
            axes = [int(axis) for axis in values_of(index.initializers[node.input[1]])]
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        keeps = bool(attribute(node, "keepdims", 1))
        pooled = node.output[0] if keeps else unused(f"{node.output[0]}_pooled")
        nodes = [helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name)]
        if not keeps:
            flatten = unused(f"{node.name}_Flatten")
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], flatten, axis=1))
        user_types.update({each.name: each.op_type for each in nodes})
        replaced[node.name] = nodes
    return replaced


def _drop_unknown_values(model: onnx.ModelProto) -> None:
    """What is known of the shapes of tensors that are gone."""
    made = {name for node in model.graph.node for name in node.output}
    kept = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
