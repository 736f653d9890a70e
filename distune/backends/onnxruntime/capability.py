"""What ONNX Runtime can quantize, op type by op type, and which ops of a model that is.

The table holds what the CPU provider has an integer kernel for, or passes on unchanged, when it finds the op between
DequantizeLinear and QuantizeLinear. Weights that give the same numbers as others are not in it: symmetric uint8 is
symmetric int8, and an asymmetric weight is of its activation's type. Asymmetric weights per channel are not offered for
grouped convolutions, which ONNX Runtime 1.31 then runs ten times slower than fp32 (depthwise ones of MobileNetV1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from distune.backends.onnxruntime.graph import GraphIndex, attribute
from distune.backends.onnxruntime.preprocess import WEIGHTED, PreparedModel
from distune.backends.statistics import MASK_MAGNITUDE
from distune.space.capability import Capability, OpInfo, Recipe
from distune.space.op_config import FP32, OpConfig, TensorConfig

Kind = Literal["weighted", "lookup", "elementwise", "activation", "pass_through"]
"""How an op is quantized.

``weighted``: own weight, or two activations. ``lookup``: own table of values. ``elementwise``: input and output have
ranges of their own. ``activation``: merges into the range of what comes before it. ``pass_through``: output values are
input values (or zero), so both share scale and zero point.
"""

OP_KINDS: dict[str, Kind] = {
    "Conv": "weighted",
    "MatMul": "weighted",
    "Gemm": "weighted",
    "Gather": "lookup",
    "Add": "elementwise",
    "Mul": "elementwise",
    "Sigmoid": "elementwise",
    "LeakyRelu": "elementwise",
    "AveragePool": "elementwise",
    "GlobalAveragePool": "elementwise",
    "Concat": "elementwise",
    "Softmax": "elementwise",
    "Relu": "activation",
    "Clip": "activation",
    "MaxPool": "pass_through",
    "Split": "pass_through",
    "Pad": "pass_through",
    "Resize": "pass_through",
    "Reshape": "pass_through",
    "Transpose": "pass_through",
    "Squeeze": "pass_through",
    "Unsqueeze": "pass_through",
    "Flatten": "pass_through",
    "Slice": "pass_through",
    "ReduceMax": "pass_through",
    "ReduceMin": "pass_through",
    "ArgMax": "pass_through",
}

WEIGHTS: tuple[TensorConfig, ...] = tuple(
    TensorConfig(dtype, scheme, granularity)
    for dtype, scheme in (("int8", "sym"), ("uint8", "asym"), ("int8", "asym"))
    for granularity in ("per_channel", "per_tensor")
)
"""Weights of Conv, MatMul and Gemm, those with the fastest kernels first."""

ACTIVATIONS: tuple[TensorConfig, ...] = tuple(
    TensorConfig(dtype, scheme, "per_tensor", algorithm)
    for dtype, scheme in (("uint8", "asym"), ("uint8", "sym"), ("int8", "sym"), ("int8", "asym"))
    for algorithm in ("minmax", "percentile", "kl")
)
"""Activations: uint8 first, since x86 runs int8 slower. int8 asym has the numbers of uint8 asym, but other kernels."""

_WEIGHTED_OPTIONS = (
    *(
        OpConfig("static", activation, weight)
        for activation in ACTIVATIONS
        for weight in WEIGHTS
        if weight.scheme == "sym" or weight.dtype == activation.dtype
    ),
    FP32,
)
_GROUPED_CONV_OPTIONS = tuple(
    option
    for option in _WEIGHTED_OPTIONS
    if option.weight is None or (option.weight.scheme, option.weight.granularity) != ("asym", "per_channel")
)
_ACTIVATION_OPTIONS = (*(OpConfig("static", activation) for activation in ACTIVATIONS), FP32)
_LOOKUP_OPTIONS = (OpConfig("static", ACTIVATIONS[0], TensorConfig("uint8", "asym")), FP32)
_LOOKUP_FOLLOWER_OPTIONS = (OpConfig("static", ACTIVATIONS[0]), FP32)

_SHAPE_OPS = frozenset({"Shape", "Size", "Constant", "ConstantOfShape", "Cast", "Identity", "Range", "Expand"})

_NORMALIZATIONS = frozenset(
    {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}
)


@dataclass(frozen=True)
class _Quantizable:
    node: onnx.NodeProto
    group: str
    options: tuple[OpConfig, ...]
    has_weight: bool


def inspect(model: PreparedModel) -> Capability:
    """The capability of ONNX Runtime for ``model``: its ops in graph order, their groups and what is left out."""
    index = model.index
    integer_made = _made_from_integers(model)
    found: dict[str, _Quantizable] = {}
    excluded: list[tuple[str, str, str]] = []
    for node in model.proto.graph.node:
        if node.op_type in _SHAPE_OPS or not _handles_floats(index, node):
            continue
        reason = _reason_to_exclude(model, node, integer_made, found)
        if reason:
            excluded.append((node.name, node.op_type, reason))
        else:
            found[node.name] = _quantizable(index, node, found)
    ops = tuple(OpInfo(q.node.name, q.node.op_type, q.options, q.group, q.has_weight) for q in found.values())
    return Capability(ops, tuple(_recipes(ops)), tuple(excluded))


def weight_input(index: GraphIndex, node: onnx.NodeProto) -> str | None:
    """Name of the constant tensor that is quantized as the op's weight; ``None`` where it has none."""
    position = {"weighted": 1, "lookup": 0}.get(OP_KINDS.get(node.op_type, ""))
    if position is None:
        return None
    if position == 1 and node.op_type == "MatMul" and node.input[0] in index.initializers:
        position = 0
    name = node.input[position]
    return name if name in index.initializers and index.is_float(name) else None


def activation_inputs(index: GraphIndex, node: onnx.NodeProto) -> list[str]:
    """Floating-point inputs of a node that are not constant."""
    return [name for name in dict.fromkeys(node.input) if name and index.is_float(name) and not index.is_constant(name)]


def activation_outputs(index: GraphIndex, node: onnx.NodeProto) -> list[str]:
    """Floating-point outputs of a node."""
    return [name for name in node.output if name and index.is_float(name)]


def _quantizable(index: GraphIndex, node: onnx.NodeProto, found: dict[str, _Quantizable]) -> _Quantizable:
    kind = OP_KINDS[node.op_type]
    leader = _leader(index, node, found)
    has_weight = weight_input(index, node) is not None
    if leader is not None:
        of_lookup = leader.options in (_LOOKUP_OPTIONS, _LOOKUP_FOLLOWER_OPTIONS)
        options = _LOOKUP_FOLLOWER_OPTIONS if of_lookup else _ACTIVATION_OPTIONS
        return _Quantizable(node, leader.group, options, False)
    if kind == "lookup" and has_weight:
        return _Quantizable(node, node.name, _LOOKUP_OPTIONS, True)
    if not has_weight:
        return _Quantizable(node, node.name, _ACTIVATION_OPTIONS, False)
    options = _GROUPED_CONV_OPTIONS if attribute(node, "group", 1) > 1 else _WEIGHTED_OPTIONS
    return _Quantizable(node, node.name, options, True)


def _leader(index: GraphIndex, node: onnx.NodeProto, found: dict[str, _Quantizable]) -> _Quantizable | None:
    """The op before ``node`` with which it must change together, if there is one."""
    producers = [found[p.name] for p in _producers(index, node) if p.name in found]
    kind = OP_KINDS[node.op_type]
    if kind in ("activation", "pass_through") or (kind == "lookup" and weight_input(index, node) is None):
        return producers[0] if producers else None
    if node.op_type == "Add" and len(producers) == 1 and len(activation_inputs(index, node)) == 1:
        before = producers[0]  # the bias of a MatMul, which ONNX Runtime fuses
        bias = next((index.initializers[name] for name in node.input if name in index.initializers), None)
        single = index.only_consumer(before.node.output[0]) is not None
        if before.node.op_type == "MatMul" and single and bias is not None and len(bias.dims) == 1:
            return before
    return None


def _reason_to_exclude(
    model: PreparedModel, node: onnx.NodeProto, integer_made: set[str], found: dict[str, _Quantizable]
) -> str:
    index, kind = model.index, OP_KINDS.get(node.op_type)
    user_type = model.user_types.get(node.name, "")
    inputs = activation_inputs(index, node)
    if kind is None or node.domain not in ("", "ai.onnx"):
        return f"ONNX Runtime has no integer kernel for {node.op_type}"
    if user_type != node.op_type and not (node.op_type in WEIGHTED and user_type in WEIGHTED):
        return f"part of a {user_type or 'composed'} op, which ONNX Runtime has no integer kernel for"
    if kind == "weighted":
        if not inputs:
            return "its inputs are constant"
        if node.op_type != "MatMul" and weight_input(index, node) is None:
            return "its weight is not constant"
        return ""
    if kind == "lookup" and weight_input(index, node) is not None:
        return ""
    if not inputs:
        return "its inputs are constant"
    if any(name in integer_made for name in inputs):
        return "works on values made from integer inputs, such as an attention mask, which would set the range"
    if any(_is_mask_constant(index.initializers[name]) for name in node.input if name in index.initializers):
        return "its constant holds mask values, which would set the range"
    if node.op_type == "Softmax" and any(n.op_type == "MatMul" for n in index.consumers.get(node.output[0], ())):
        return "attention probabilities lose too much in 8 bits"
    if not any(producer.name in found for producer in _producers(index, node)):
        return "nothing before it is quantized"
    readers = {reader.op_type for name in node.output for reader in index.consumers.get(name, ())}
    if kind == "elementwise" and readers & _NORMALIZATIONS and _leader(index, node, found) is None:
        return f"{min(readers & _NORMALIZATIONS)} behind it runs in fp32 and magnifies its rounding"
    return ""


def _recipes(ops: tuple[OpInfo, ...]) -> Iterator[Recipe]:
    heavy = [op for op in ops if op.op_type in ("Conv", "MatMul", "Gemm")]
    if not heavy:
        return
    for position, anchor in (("first", heavy[0]), ("last", heavy[-1])):
        yield Recipe(
            name=f"{position}_conv_or_matmul_quantization",
            default=True,
            choices=(True, False),
            doc=f"False keeps the {position} Conv, MatMul or Gemm in fp32.",
            fp32_ops=tuple(op.name for op in ops if op.group == anchor.group),
        )


def _producers(index: GraphIndex, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [index.producer[name] for name in activation_inputs(index, node) if name in index.producer]


def _handles_floats(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return any(name and index.is_float(name) for name in node.output) or (
        node.op_type == "ArgMax" and index.is_float(node.input[0])
    )


def _is_mask_constant(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size and not np.all(np.abs(values) < MASK_MAGNITUDE))


def _made_from_integers(model: PreparedModel) -> set[str]:
    """Tensors that depend on integer or boolean inputs and shapes alone: masks and positions, not embeddings."""
    index = model.index
    made = {name for name in index.inputs if not index.is_float(name)}
    for node in model.proto.graph.node:
        if node.op_type in ("Shape", "Size"):
            made.update(node.output)
            continue
        varying = [name for name in node.input if name and not index.is_constant(name)]
        if varying and all(name in made for name in varying) and weight_input(index, node) is None:
            made.update(node.output)
    return made
