"""fp16 as a precision between int8 and fp32, op by op.

The ops compute in fp16 where an execution provider has a kernel. ONNX Runtime's CPU provider on x86 has few: for the
others it widens the weights once, when it loads the model, and computes in fp32. There the gain is the file, half as
large; the time is that of fp32. So it is offered only where a rule of the user names it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames
from distune.backends.onnxruntime.options import OP_KINDS
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.weights import add_constant, drop_unused_constants
from distune.space.capability import Capability, OpInfo
from distune.space.op_config import FP32, OpConfig

FP16 = OpConfig("fp16")

_LARGEST = float(np.finfo(np.float16).max)
_CONVERTED_INPUTS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1, 2),
    "Conv": (0, 1, 2),
    "Add": (0, 1),
    "Mul": (0, 1),
    "Clip": (0, 1, 2),
    "Pad": (0, 2),
}
"""Positions of the inputs of an op's own type; of Concat all, of others the first."""

_OTHER_OUTPUT_TYPE = frozenset({"ArgMax"})
_INTEGER_OUTPUTS: Mapping[str, int] = {"MaxPool": 1}
"""Positions of the outputs that are integers in any precision."""


def offer_fp16(model: PreparedModel, capability: Capability) -> Capability:
    """``capability`` with fp16 as an option, liked better than fp32, of the ops whose weights fit into it."""
    return replace(capability, ops=tuple(_offered(model, op) for op in capability.ops))


def write_fp16(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Turn the nodes of ``names``, which compute in fp32, to fp16 in place, with casts where they meet the others."""
    if not names:
        return
    index = GraphIndex(proto)
    ours = {name for name in names if name in index.nodes}
    unused = UnusedNames(proto)
    made = [tensor for node in proto.graph.node if node.name in ours for _, tensor in _own_outputs(node)]
    halves = {tensor: unused(f"{tensor}_fp16") for tensor in made}
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.name not in ours:
            nodes.append(node)
            continue
        for position in _positions(node):
            tensor = node.input[position] if position < len(node.input) else ""
            if not tensor:
                continue
            if tensor not in halves:
                halves[tensor] = unused(f"{tensor}_fp16")
                if tensor in index.initializers:
                    add_constant(proto, halves[tensor], values_of(index.initializers[tensor]).astype(np.float16))
                else:
                    nodes.append(_cast(tensor, halves[tensor], unused(f"{tensor}_to_fp16"), TensorProto.FLOAT16))
            node.input[position] = halves[tensor]
        nodes.append(node)
        for position, tensor in _own_outputs(node):
            readers = index.consumers.get(tensor, ())
            node.output[position] = halves[tensor]
            if tensor in index.outputs or any(reader.name not in ours for reader in readers):
                nodes.append(_cast(halves[tensor], tensor, unused(f"{tensor}_to_fp32"), TensorProto.FLOAT))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    drop_unused_constants(proto)


def _offered(model: PreparedModel, op: OpInfo) -> OpInfo:
    node = model.index.nodes[op.name]
    if op.op_type not in OP_KINDS or op.op_type in _OTHER_OUTPUT_TYPE or FP32 not in op.options:
        return op
    for position in _positions(node):
        tensor = model.index.initializers.get(node.input[position]) if position < len(node.input) else None
        if tensor is not None and np.abs(values_of(tensor)).max(initial=0.0) > _LARGEST:
            return op
    options = [option for option in op.options if option != FP32]
    return replace(op, options=(*options, FP16, FP32))


def _positions(node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(range(len(node.input))) if node.op_type == "Concat" else _CONVERTED_INPUTS.get(node.op_type, (0,))


def _own_outputs(node: onnx.NodeProto) -> list[tuple[int, str]]:
    """Positions and names of the outputs of an op's own type that are there."""
    integers = _INTEGER_OUTPUTS.get(node.op_type)
    return [(position, name) for position, name in enumerate(node.output) if name and position != integers]


def _cast(source: str, target: str, name: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name, to=to)
