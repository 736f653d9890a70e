"""Which ops of a model ONNX Runtime can quantize, how, and which of them fall back together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from distune.backends.onnxruntime.blocks import find_blocks
from distune.backends.onnxruntime.dynamic import runs_dynamically
from distune.backends.onnxruntime.graph import WEIGHTED, GraphIndex, attribute
from distune.backends.onnxruntime.options import (
    ACTIVATION_OPTIONS,
    DYNAMIC_OPTIONS,
    GROUPED_CONV_OPTIONS,
    LOOKUP_FOLLOWER_OPTIONS,
    LOOKUP_OPTIONS,
    OP_KINDS,
    WEIGHTED_OPTIONS,
)
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.shared import values_of
from distune.backends.recipes.precision import first_and_last
from distune.backends.statistics import MASK_MAGNITUDE
from distune.space.capability import Capability, OpInfo
from distune.space.op_config import FP32, OpConfig

_SHAPE_OPS = frozenset({"Shape", "Size", "Constant", "ConstantOfShape", "Cast", "Identity", "Range"})

_JOINING = frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool"})
"""Elementwise op types that fall back with the last op before them: residual additions, poolings, concatenations."""

_NORMALIZATIONS = frozenset(
    {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}
)


@dataclass(frozen=True)
class _Quantizable:
    node: onnx.NodeProto
    group: str
    static: tuple[OpConfig, ...]
    dynamic: tuple[OpConfig, ...]
    has_weight: bool
    position: int = 0

    @property
    def info(self) -> OpInfo:
        options = (*self.static, *self.dynamic, FP32)
        return OpInfo(self.node.name, self.node.op_type, options, self.group, self.has_weight)


def inspect(model: PreparedModel) -> Capability:
    """The capability of ONNX Runtime for ``model``: its ops in graph order, their groups and what is left out."""
    index = model.index
    integer_made = _made_from_integers(model)
    in_gelu = _in_gelu(model)
    found: list[_Quantizable] = []
    static: dict[str, _Quantizable] = {}
    excluded: list[tuple[str, str, str]] = []
    for position, node in enumerate(model.proto.graph.node):
        if node.op_type in _SHAPE_OPS or not _handles_floats(index, node):
            continue
        reason = _reason_to_exclude(model, node, integer_made, static)
        if not reason and node.name in in_gelu:
            reason = "part of a GELU, which ONNX Runtime runs as one op in fp32"
        dynamic = DYNAMIC_OPTIONS[node.op_type] if runs_dynamically(index, node) else ()
        if not reason:
            static[node.name] = replace(_quantizable(index, node, static, dynamic), position=position)
            found.append(static[node.name])
        elif dynamic and node.op_type not in OP_KINDS:
            found.append(_Quantizable(node, node.name, (), dynamic, True))
        else:
            excluded.append((node.name, node.op_type, reason))
    ops = tuple(op.info for op in found)
    recipes = tuple(first_and_last(ops, ("Conv", "MatMul", "Gemm")))
    blocks = find_blocks(model.proto, index, {op.name: op.group for op in ops})
    return Capability(ops, recipes, tuple(excluded), blocks)


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


def _quantizable(
    index: GraphIndex, node: onnx.NodeProto, found: dict[str, _Quantizable], dynamic: tuple[OpConfig, ...]
) -> _Quantizable:
    leader = _leader(index, node, found)
    has_weight = weight_input(index, node) is not None
    if leader is not None:
        of_lookup = leader.static in (LOOKUP_OPTIONS, LOOKUP_FOLLOWER_OPTIONS)
        options = LOOKUP_FOLLOWER_OPTIONS if of_lookup else ACTIVATION_OPTIONS
        return _Quantizable(node, leader.group, options, (), False)
    if OP_KINDS[node.op_type] == "lookup" and has_weight:
        return _Quantizable(node, node.name, LOOKUP_OPTIONS, dynamic, True)
    if not has_weight:
        return _Quantizable(node, node.name, ACTIVATION_OPTIONS, dynamic, False)
    options = GROUPED_CONV_OPTIONS if attribute(node, "group", 1) > 1 else WEIGHTED_OPTIONS
    return _Quantizable(node, node.name, options, dynamic, True)


def _leader(index: GraphIndex, node: onnx.NodeProto, found: dict[str, _Quantizable]) -> _Quantizable | None:
    """The op before ``node`` with which it must change together, if there is one.

    Either ONNX Runtime fuses the two, or they share parameters, or a Q/DQ pair between them would buy nothing.
    """
    fused = _fused_with(index, node, found)
    if fused is not None or node.op_type not in _JOINING:
        return fused
    before = [found[p.name] for p in _producers(index, node) if p.name in found]
    alone = [op for op in before if index.only_consumer(op.node.output[0]) is not None]
    return max(alone, key=lambda op: op.position, default=None)


def _fused_with(index: GraphIndex, node: onnx.NodeProto, found: dict[str, _Quantizable]) -> _Quantizable | None:
    """The op before ``node`` that ONNX Runtime fuses it into or whose scale and zero point it keeps."""
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
        if any(name and not index.is_constant(name) for name in node.input[2:]):
            return "its bias is not constant"
        return ""
    if kind == "lookup" and weight_input(index, node) is not None:
        return ""
    if node.op_type == "Resize" and (attribute(node, "mode", b"") == b"cubic" or _extrapolates(node)):
        return "its values leave the range of its input"
    if not inputs:
        return "its inputs are constant"
    if node.op_type == "AveragePool" and any(item.name == "dilations" for item in node.attribute):
        return "ONNX Runtime has no integer kernel for AveragePool with dilations"
    if any(name in integer_made for name in inputs):
        return "works on values made from integer inputs, such as an attention mask, which would set the range"
    if any(_is_mask_constant(index.initializers[name]) for name in node.input if name in index.initializers):
        return "its constant holds mask values, which would set the range"
    if node.op_type == "Softmax" and any(n.op_type == "MatMul" for n in index.consumers.get(node.output[0], ())):
        return "attention probabilities lose too much in 8 bits"
    if not any(producer.name in found for producer in _producers(index, node)):
        return "nothing before it is quantized"
    readers = {reader.op_type for name in node.output for reader in index.consumers.get(name, ())}
    if kind == "elementwise" and _leads_to_attention(index, node):
        return "softmax behind it runs in fp32 and magnifies its rounding"
    if kind == "elementwise" and readers & _NORMALIZATIONS and _fused_with(index, node, found) is None:
        return f"{min(readers & _NORMALIZATIONS)} behind it runs in fp32 and magnifies its rounding"
    return ""


def _extrapolates(resize: onnx.NodeProto) -> bool:
    cuts_out = attribute(resize, "coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
    return cuts_out and attribute(resize, "extrapolation_value", 0.0) != 0.0


def _leads_to_attention(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether the op only scales, shifts or masks the scores that go into the softmax of an attention."""
    for _ in range(4):
        reader = index.only_consumer(node.output[0])
        if reader is None:
            return False
        if reader.op_type == "Softmax":
            return any(after.op_type == "MatMul" for after in index.consumers.get(reader.output[0], ()))
        if reader.op_type not in ("Add", "Mul", "Div", "Sub", "Where"):
            return False
        node = reader
    return False


def _producers(index: GraphIndex, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [index.producer[name] for name in activation_inputs(index, node) if name in index.producer]


def _handles_floats(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return any(name and index.is_float(name) for name in node.output) or (
        node.op_type == "ArgMax" and index.is_float(node.input[0])
    )


def _is_mask_constant(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        return False
    values = values_of(tensor)
    return bool(values.size and not np.all(np.abs(values) < MASK_MAGNITUDE))


def _in_gelu(model: PreparedModel) -> set[str]:
    """Names of the multiplications of each GELU, spelled with Erf or Tanh: ``x * 0.5 * (1 + erf(x / sqrt(2)))``."""
    index = model.index

    def readers(node: onnx.NodeProto, op_type: str) -> list[onnx.NodeProto]:
        return [reader for reader in index.consumers.get(node.output[0], ()) if reader.op_type == op_type]

    found: set[str] = set()
    for bend in model.proto.graph.node:
        if bend.op_type not in ("Erf", "Tanh"):
            continue
        for product in (product for add in readers(bend, "Add") for product in readers(add, "Mul")):
            near = [*_producers(index, product), *readers(product, "Mul")]
            halves = [node for node in near if node.op_type == "Mul" and any(map(index.is_constant, node.input))]
            found.update(node.name for node in (product, *halves))
    return found


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
