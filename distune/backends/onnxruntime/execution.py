"""Which ops ONNX Runtime really executes on integers, read from the graph that it optimised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from distune.backends.onnxruntime.graph import attribute

INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "QAttention",
        "QEmbedLayerNormalization",
    }
)
"""Op types that work on integers. MatMulNBits does so at one accuracy level only, see ``computes_on_integers``."""

_INTEGER_LEVEL = 4
"""``accuracy_level`` of MatMulNBits at which activations are rounded to int8; below, weights are widened to fp32."""

_LAYOUT_SUFFIX = re.compile(r"_token_\d+$")
"""What ONNX Runtime appends to the name of a node that it turned to channels-last layout."""

_INTEGER_TYPES = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})


@dataclass(frozen=True)
class Execution:
    """How the weighted ops of a quantized model run.

    Attributes:
        integer: Names of the ops that run on integers.
        reasons: Why not, by name of an op that was quantized and does not.
    """

    integer: tuple[str, ...]
    reasons: dict[str, str]


def computes_on_integers(node: onnx.NodeProto) -> bool:
    """Whether a node of an optimised graph multiplies integers, not only stores them."""
    if node.op_type == "MatMulNBits":
        return bool(attribute(node, "accuracy_level", 0) == _INTEGER_LEVEL)
    return node.op_type in INTEGER_KERNELS


def executed_on_integers(optimized: onnx.ModelProto, quantized: Iterable[str]) -> Execution:
    """Look the ops up in the optimised graph.

    Args:
        optimized: As ``session.optimized_graph`` gives it; fused nodes keep the name of the op they stand for.
        quantized: Names of the weighted ops that the tuning config quantizes, in graph order.
    """
    nodes = {_LAYOUT_SUFFIX.sub("", node.name): node for node in optimized.graph.node}
    made_by = {name: node for node in optimized.graph.node for name in node.output}
    integers = {tensor.name for tensor in optimized.graph.initializer if tensor.data_type in _INTEGER_TYPES}
    integer: list[str] = []
    reasons: dict[str, str] = {}
    for name in quantized:
        node = nodes.get(name)
        if node is None:
            reasons[name] = "not found in the graph that ONNX Runtime executes: fused into another op"
        elif computes_on_integers(node) or (node.op_type == "Gather" and node.input[0] in integers):
            integer.append(name)
        else:
            reasons[name] = _reason(node, made_by)
    return Execution(tuple(integer), reasons)


def _reason(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> str:
    if node.op_type == "MatMulNBits":
        return (
            "its weight is stored in integers and computed with in floating point; "
            "recipe accuracy_level: 4 computes on integers"
        )
    dequantized = [made_by[name].op_type == "DequantizeLinear" for name in node.input if name in made_by]
    if any(dequantized):
        return (
            f"ONNX Runtime has no integer {node.op_type} for this combination of types, "
            "so it dequantizes the inputs and computes in floating point"
        )
    return f"runs as {node.op_type} in floating point: its inputs are not quantized"
