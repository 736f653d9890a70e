"""Recipes that say which tensors get QuantizeLinear and DequantizeLinear, and which share a scale."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX

from distune.backends.onnxruntime.calibration import measured_at
from distune.backends.onnxruntime.graph import UnusedNames, attribute
from distune.backends.onnxruntime.options import OP_KINDS
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.shared import values_of


def quantizer_options(recipes: Mapping[str, Any]) -> dict[str, Any]:
    """``extra_options`` of ONNX Runtime's quantizer for ``recipes`` (those that are not at their default)."""
    options: dict[str, Any] = {}
    if recipes.get("dedicated_qdq_pair"):
        options["DedicatedQDQPair"] = True
    if recipes.get("optypes_to_exclude_output_quant"):
        options["OpTypesToExcludeOutputQuantization"] = recipes["optypes_to_exclude_output_quant"].split(",")
    return options


def concat_ranges(model: PreparedModel, nodes: Sequence[onnx.NodeProto], quantized: Collection[str]) -> dict[str, str]:
    """Inputs of Concat that take the scale of its output: the output by input.

    What only passes the scale of its own input on keeps that, and so does an input of the model. So does what others
    read, too, where the output's range is that of an activation behind it, which cuts some of it off.

    Args:
        nodes: The ops that are quantized statically, in graph order.
        quantized: Names of the activations that are.
    """
    shared: dict[str, str] = {}
    for node in reversed(nodes):  # a Concat behind another one decides for both
        if node.op_type != "Concat" or node.output[0] not in quantized:
            continue
        output = shared.get(node.output[0], node.output[0])
        is_cut_off = measured_at(model.index, output) != output
        for name in node.input:
            producer = model.index.producer.get(name)
            if is_cut_off and model.index.only_consumer(name) is None:
                continue
            if name in quantized and producer is not None and OP_KINDS.get(producer.op_type) != "pass_through":
                shared.setdefault(name, output)
    return shared


def add_qdq_pairs_to_weights(proto: onnx.ModelProto, model: PreparedModel, weights: Iterable[str]) -> int:
    """Store weights in floating point with a QuantizeLinear before their DequantizeLinear, in place.

    The floating-point values are those that the integers stand for where they were not rounded to nearest.

    Args:
        model: The fp32 graph.
        weights: Names of the weights in it.

    Returns:
        The number of weights.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    originals = {f"{name}{TENSOR_NAME_QUANT_SUFFIX}": model.index.initializers[name] for name in weights}
    readers = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in originals]
    made: dict[str, onnx.NodeProto] = {}
    unused = UnusedNames(proto)
    for node in readers:
        name = node.input[0]
        if name not in constants or name in made:
            continue
        integers, scale, zero = (values_of(constants[each]) for each in node.input[:3])
        shape = [1] * integers.ndim
        if scale.ndim:
            shape[attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
        original = values_of(originals[name])
        bounds = np.iinfo(integers.dtype)
        nearest = np.clip(np.rint(original / scale) + zero, bounds.min, bounds.max)
        same = np.array_equal(nearest, integers)
        values = original if same else ((integers.astype(np.float32) - zero) * scale).astype(original.dtype)
        stored, quantize = unused(f"{name}_fp32"), unused(f"{name}_QuantizeLinear")
        made[name] = onnx.helper.make_node("QuantizeLinear", [stored, *node.input[1:3]], [name], quantize)
        made[name].attribute.extend(node.attribute)
        constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), stored))
    nodes = [*made.values(), *(onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return len(made)
