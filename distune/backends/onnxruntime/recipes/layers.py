"""The layers of an ONNX graph: Conv, Gemm and MatMul with a constant weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from distune.backends.onnxruntime.graph import GraphIndex, attribute, has_factors
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.shared import values_of
from distune.backends.recipes.layer import Layer, Padding


@dataclass(frozen=True)
class OnnxLayer(Layer):
    """A Conv, Gemm or MatMul.

    Attributes:
        adder: Name of the Add behind a MatMul that adds the bias; empty if none.
        adds_computed: What the op adds is no constant, so that its outputs cannot be scaled.
    """

    adder: str = ""
    adds_computed: bool = False


def layers(model: PreparedModel, names: Iterable[str] | None = None) -> Iterator[OnnxLayer]:
    """The layers of a model in graph order, or those of the given op names."""
    wanted = None if names is None else set(names)
    for node in model.proto.graph.node:
        if wanted is None or node.name in wanted:
            layer = layer_of(model.index, node)
            if layer is not None:
                yield layer


def constant(index: GraphIndex, name: str) -> NDArray[Any]:
    """The values of an initializer."""
    return values_of(index.initializers[name])


def set_constant(proto: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    """Give an initializer new values (of the same type, any shape)."""
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, dtype, order="C"), name))


def layer_of(index: GraphIndex, node: onnx.NodeProto) -> OnnxLayer | None:
    """``node`` as a layer; ``None`` where it is none, or its weight is not constant."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    if node.input[1] not in index.initializers or index.is_constant(node.input[0]):
        return None
    weight = index.initializers[node.input[1]]
    if not index.is_float(weight.name) or (node.op_type != "Conv" and len(weight.dims) != 2):
        return None
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or has_factors(node)):
        return None
    bias, output, adder = node.input[2] if len(node.input) > 2 else "", node.output[0], ""
    if node.op_type == "MatMul":
        after = index.only_consumer(output)
        if after is not None and after.op_type == "Add":
            added = next((name for name in after.input if name in index.initializers), "")
            if added and list(index.initializers[added].dims) == [weight.dims[1]]:
                bias, output, adder = added, after.output[0], after.name
    adds_computed = bool(bias) and bias not in index.initializers
    if adds_computed:
        bias = ""
    shape = tuple(weight.dims)
    if node.op_type == "Conv":
        rank = len(shape) - 2
        geometry = [f"{a.name}={list(a.ints) or a.i or a.s!r}" for a in sorted(node.attribute, key=_name)]
        return OnnxLayer(
            str(node.name),
            weight.name,
            shape,
            node.input[0],
            output,
            f"patches{list(shape[2:])} {' '.join(geometry)}:{node.input[0]}",
            bias,
            is_conv=True,
            groups=attribute(node, "group", 1),
            strides=_ints(node, "strides", rank),
            dilations=_ints(node, "dilations", rank),
            padding=_padding(node, rank),
            adds_computed=adds_computed,
        )
    return OnnxLayer(
        str(node.name),
        weight.name,
        shape,
        node.input[0],
        output,
        f"rows:{node.input[0]}",
        bias,
        transposed=bool(node.op_type == "MatMul" or not attribute(node, "transB", 0)),
        adder=adder,
        adds_computed=adds_computed,
    )


def _name(item: onnx.AttributeProto) -> str:
    return str(item.name)


def _ints(node: onnx.NodeProto, name: str, rank: int) -> tuple[int, ...]:
    return tuple(attribute(node, name, [1] * rank))


def _padding(node: onnx.NodeProto, rank: int) -> Padding:
    automatic = attribute(node, "auto_pad", b"NOTSET")
    if automatic == b"SAME_UPPER":
        return "same_upper"
    if automatic == b"SAME_LOWER":
        return "same_lower"
    pads = attribute(node, "pads", [0] * (2 * rank))
    return tuple((pads[axis], pads[axis + rank]) for axis in range(rank))
