"""Where integers end: matrix products whose result only fp32 ops read.

ONNX Runtime has a product of integers that gives floating point, with its bias (MatMulIntegerToFloat). Behind the
output projection or the last layer of a transformer's network, in front of a GELU or a residual addition, rounding the
result to 8 bits would only cost accuracy and a QuantizeLinear, DequantizeLinear pair.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from distune.backends.onnxruntime.capability import activation_inputs
from distune.backends.onnxruntime.graph import GraphIndex

_CARRIERS = frozenset({"Add", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice"})
"""What may stand between a product and the op that reads it: its bias, and ops that only move values."""


def floating_ends(
    model: onnx.ModelProto, index: GraphIndex, static: Collection[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """What behind products need not be quantized, with the ops of ``static`` quantized.

    Returns:
        Names of ops of ``static`` that run in fp32 although their group is quantized, and names of the products'
        outputs that stay in floating point.
    """
    integers = set(static)
    outputs: set[str] = set()
    for node in reversed(model.graph.node):
        if node.name not in integers or not (node.op_type == "MatMul" or _carries_product(index, node, static)):
            continue
        if any(reader.name in integers for name in node.output for reader in index.consumers.get(name, ())):
            continue
        if node.op_type == "MatMul":
            outputs.update(node.output)
        else:
            integers.remove(node.name)
    return frozenset(static) - integers, frozenset(outputs)


def _carries_product(index: GraphIndex, node: onnx.NodeProto, static: Collection[str]) -> bool:
    while node.op_type in _CARRIERS:
        inputs = activation_inputs(index, node)
        source = index.producer.get(inputs[0]) if len(inputs) == 1 else None
        if source is None or source.name not in static:
            return False
        if source.op_type == "MatMul":
            return True
        node = source
    return False
