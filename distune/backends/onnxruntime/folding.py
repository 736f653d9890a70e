"""Factors on the input of a layer, folded into the LayerNormalization before it so that they cost nothing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from distune.backends.onnxruntime.graph import GraphIndex, replace_nodes


def fold_into_normalization(proto: onnx.ModelProto, factors: Collection[str]) -> int:
    """Remove Mul nodes by multiplying scale and bias of the LayerNormalization before them, in place.

    A factor stays where anything else reads what the normalization gives, or its scale and bias are no constants of
    the factor's length.

    Args:
        factors: Names of the Mul nodes; their second input is a constant [channels].

    Returns:
        How many were folded.
    """
    index = GraphIndex(proto)
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
                folded = numpy_helper.from_array(scaled, f"{name}_{position}")
                proto.graph.initializer.append(folded)
                before.input[position] = folded.name
        for reader in index.consumers.get(factor.output[0], ()):
            for position, tensor in enumerate(reader.input):
                if tensor == factor.output[0]:
                    reader.input[position] = source
        removed.add(name)
    replace_nodes(proto, dict.fromkeys(removed, ()))
    return len(removed)
