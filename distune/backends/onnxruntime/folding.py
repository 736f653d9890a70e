"""Factors, folded into constants so that they cost nothing: those of a Gemm, and those on the input of a layer."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from distune.backends.onnxruntime.graph import GEMM_FACTORS, GraphIndex, UnusedNames, replace_nodes
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.weights import add_constant, drop_unused_constants


def fold_gemm_factors(proto: onnx.ModelProto) -> None:
    """Multiply ``alpha`` into the constant weight of each Gemm and ``beta`` into its constant bias, in place.

    ONNX Runtime's integer Gemm adds a bias in units of input scale times weight scale and multiplies the sum by
    ``alpha``; it knows no ``beta``. Where a weight or bias is not constant its factor stays.
    """
    index, unused = GraphIndex(proto), UnusedNames(proto)
    scaled: dict[tuple[str, float], str] = {}
    for node in proto.graph.node:
        if node.op_type != "Gemm":
            continue
        for item in list(node.attribute):
            factor, position = item.f, GEMM_FACTORS.get(item.name)
            if position is None or factor == 1.0:
                continue
            tensor = node.input[position] if position < len(node.input) else ""
            if tensor and not (tensor in index.initializers and index.is_float(tensor)):
                continue
            if tensor and (tensor, factor) not in scaled:
                values = values_of(index.initializers[tensor])
                folded = (values * factor).astype(values.dtype)
                scaled[tensor, factor] = add_constant(proto, unused(f"{tensor}_scaled"), folded)
            if tensor:
                node.input[position] = scaled[tensor, factor]
            item.f = 1.0
    if scaled:
        drop_unused_constants(proto)


def fold_into_normalization(proto: onnx.ModelProto, factors: Collection[str]) -> int:
    """Remove Mul nodes by multiplying scale and bias of the LayerNormalization before them, in place.

    A factor stays where anything else reads what the normalization gives, or its scale and bias are no constants of
    the factor's length.

    Args:
        factors: Names of the Mul nodes; their second input is a constant [channels].

    Returns:
        How many were folded.
    """
    index, unused = GraphIndex(proto), UnusedNames(proto)
    removed: set[str] = set()
    for name in factors:
        factor = index.nodes[name]
        source = factor.input[0]
        before = index.producer.get(source)
        if before is None or before.op_type != "LayerNormalization" or index.only_consumer(source) is None:
            continue
        values = numpy_helper.to_array(index.initializers[factor.input[1]])
        parameters = [tensor for tensor in before.input[1:] if tensor]
        if any(
            list(index.initializers[p].dims) != [len(values)] if p in index.initializers else True for p in parameters
        ):
            continue
        for position, parameter in enumerate(before.input):
            if position and parameter:
                scaled = (numpy_helper.to_array(index.initializers[parameter]) * values).astype(np.float32)
                before.input[position] = add_constant(proto, unused(f"{name}_{position}"), scaled)
        for reader in index.consumers.get(factor.output[0], ()):
            for position, tensor in enumerate(reader.input):
                if tensor == factor.output[0]:
                    reader.input[position] = source
        removed.add(name)
    replace_nodes(proto, dict.fromkeys(removed, ()))
    return len(removed)
