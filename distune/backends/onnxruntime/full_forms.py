"""Short forms that newer opsets allow, written out in full before anything is quantized.

Between quantized convolutions ONNX Runtime moves transpositions of images through other ops. It then overlooks the axes
that a Pad or Resize chooses and outputs that are left out; and its integer AveragePool knows no dilations, not even 1.
"""

from __future__ import annotations

import numpy as np
import onnx

from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames, attribute, shapes_in
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.weights import add_constant

_SCALES, _SIZES = 2, 3
"""Positions of the inputs of Resize; one of the two is there."""


def write_out(model: onnx.ModelProto) -> None:
    """Do so in place, where what it takes is known; constants that nothing reads any longer are left.

    Args:
        model: With inferred shapes.
    """
    index, unused = GraphIndex(model), UnusedNames(model)
    shapes = shapes_in(model)
    for node in model.graph.node:
        while node.output and not node.output[-1]:
            del node.output[-1]
        shape = shapes.get(node.input[0]) if node.input else None
        if node.op_type == "AveragePool" and set(attribute(node, "dilations", [0])) == {1}:
            _drop_attributes(node, {"dilations"})
        elif node.op_type == "Pad" and shape is not None:
            _pad_all_axes(model, node, index, len(shape), unused)
        elif node.op_type == "Resize" and shape is not None:
            _resize_all_axes(model, node, index, shape, unused)


def _pad_all_axes(
    model: onnx.ModelProto, node: onnx.NodeProto, index: GraphIndex, rank: int, unused: UnusedNames
) -> None:
    if len(node.input) < 4 or not node.input[3]:
        return
    counts, axes = (index.initializers.get(node.input[position]) for position in (1, 3))
    if counts is None or axes is None:
        return
    around = np.zeros((2, rank), np.int64)
    around[:, values_of(axes)] = values_of(counts).reshape(2, -1)
    node.input[1] = add_constant(model, unused(f"{node.name}_pads"), around.ravel())
    del node.input[3:]


def _resize_all_axes(
    model: onnx.ModelProto, node: onnx.NodeProto, index: GraphIndex, shape: tuple[int | None, ...], unused: UnusedNames
) -> None:
    axes: list[int] = attribute(node, "axes", [])
    position = _SIZES if len(node.input) > _SIZES else _SCALES
    given = index.initializers.get(node.input[position]) if len(node.input) > position else None
    cropped = attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize"
    stretched = attribute(node, "keep_aspect_ratio_policy", b"stretch") == b"stretch"
    if not axes or given is None or cropped or not stretched:
        return
    if position == _SCALES:
        amounts = np.ones(len(shape), np.float32)
    elif None in shape:
        return
    else:
        amounts = np.array(shape, np.int64)
    amounts[axes] = values_of(given)
    node.input[position] = add_constant(model, unused(f"{node.name}_amounts"), amounts)
    _drop_attributes(node, {"axes"})


def _drop_attributes(node: onnx.NodeProto, names: set[str]) -> None:
    kept = [item for item in node.attribute if item.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
