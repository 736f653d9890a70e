"""Which ops of an exported module can be quantized, how, and which of them fall back together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from distune.backends.pytorch.options import (
    ACTIVATION_OPTIONS,
    DYNAMIC_OPTIONS,
    HALF_TYPES,
    LOOKUP_DYNAMIC_OPTIONS,
    LOOKUP_OPTIONS,
    NOT_QUANTIZABLE,
    OP_KINDS,
    SAME_RANGE,
    WEIGHTED_OPTIONS,
)
from distune.backends.pytorch.program import ExportedModule, ModuleOp
from distune.backends.recipes.precision import first_and_last
from distune.backends.statistics import MASK_MAGNITUDE
from distune.space.capability import Capability, OpInfo
from distune.space.op_config import FP32, OpConfig, TuningConfig

_THROUGH = frozenset({"ReLU", "ReLU6", "Hardtanh", "Hardswish", "SiLU", "GELU", "LeakyReLU", "dropout", "BatchNorm"})
"""Op types that belong to the kernel of the op before them."""

_SHAPE_OPS = frozenset(
    {
        *("view", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze", "expand", "slice", "select", "split"),
        *("to", "_to_copy", "contiguous", "clone", "arange", "full", "zeros", "ones", "dropout", "chunk", "unbind"),
        *("mul_", "lift_fresh_copy", "detach_", "ones_like", "zeros_like", "full_like", "scalar_tensor", "sym_size"),
    }
)
"""Functions that only move values; they are no ops that anybody would look for."""


@dataclass(frozen=True)
class Edges:
    """What is quantized of an op.

    Attributes:
        inputs: Names of the nodes whose values are quantized where the op reads them.
        weight: Name of the node of its weight, empty where it has none.
    """

    inputs: tuple[str, ...]
    weight: str = ""


def inspect(model: ExportedModule, halves: Collection[str] = ()) -> Capability:
    """The capability of torchao and Inductor for ``model``: its ops in graph order, their groups and what is left out.

    Args:
        model: Without BatchNorm behind convolutions (``folding.folded``).
        halves: Of ``bf16`` and ``fp16`` those that are offered.
    """
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    from_integers = _made_from_integers(model)
    precisions = tuple(OpConfig("bf16" if half == "bf16" else "fp16") for half in sorted(halves))
    found: dict[str, OpInfo] = {}
    excluded: list[tuple[str, str, str]] = []
    for op in model.ops:
        node = nodes[op.node]
        if op.op_type in _SHAPE_OPS or not _is_float(node):
            continue
        reason = _reason_to_exclude(model, op, node, found, from_integers)
        if not reason:
            found[op.node] = _info(model, op, node, found)
        elif op.op_type in HALF_TYPES and precisions and op.weight:
            found[op.node] = OpInfo(op.name, op.op_type, (FP32,), op.name, True)
        else:
            excluded.append((op.name, op.op_type, reason))
    ops = tuple(
        replace(info, options=(*info.options[:-1], *precisions, FP32)) if info.op_type in HALF_TYPES else info
        for info in found.values()
    )
    if model.partition is not None:
        excluded += [(path, kind, f"stays eager: {why}") for path, kind, why in model.partition.left]
    return Capability(ops, tuple(first_and_last(ops, HALF_TYPES)), tuple(excluded))


def quantized_edges(model: ExportedModule, op: ModuleOp) -> Edges:
    """What of an op is quantized, by its kind."""
    node = model.nodes[op.node]
    kind = OP_KINDS[op.op_type]
    if kind == "lookup":
        return Edges((), op.weight_node)
    if kind == "weighted":
        return Edges((_input(node, 0).name,), op.weight_node)
    if kind == "residual":
        kernel = _kernel_of(model, node)
        others = [other for other in _tensor_inputs(node) if kernel is None or other is not kernel[1]]
        return Edges(tuple(other.name for other in others[:1]))
    if kind == "pooled":
        return Edges((_input(node, 0).name,))
    return Edges(tuple(dict.fromkeys(other.name for other in _tensor_inputs(node))))


def source_of(model: ExportedModule, config: TuningConfig, tensor: str) -> str:
    """The tensor whose range ``tensor`` has, behind quantized ops that share one range with their input."""
    while True:
        op = model.by_node.get(tensor)
        if op is None or op.op_type not in SAME_RANGE or op.name not in config.by_name:
            return tensor
        if not config.by_name[op.name].is_quantized:
            return tensor
        tensor = quantized_edges(model, op).inputs[0]


def _info(model: ExportedModule, op: ModuleOp, node: Node, found: Mapping[str, OpInfo]) -> OpInfo:
    kind = OP_KINDS[op.op_type]
    if kind == "lookup":
        return OpInfo(op.name, op.op_type, (*LOOKUP_OPTIONS, *LOOKUP_DYNAMIC_OPTIONS, FP32), op.name, True)
    if kind == "weighted":
        dynamic = DYNAMIC_OPTIONS if op.op_type == "Linear" else ()
        return OpInfo(op.name, op.op_type, (*WEIGHTED_OPTIONS, *dynamic, FP32), op.name, True)
    leader = _leader(model, node, found)
    group = op.name if leader is None else leader.group
    return OpInfo(op.name, op.op_type, (*ACTIVATION_OPTIONS, FP32), group)


def _leader(model: ExportedModule, node: Node, found: Mapping[str, OpInfo]) -> OpInfo | None:
    """The op before ``node`` with which it falls back together: the latest of those that it reads."""
    before = [found[p.name] for p in map(_through, _tensor_inputs(node)) if p.name in found]
    order = {op.name: position for position, op in enumerate(model.ops)}
    return max(before, key=lambda info: order[info.name], default=None)


def _reason_to_exclude(
    model: ExportedModule, op: ModuleOp, node: Node, found: Mapping[str, OpInfo], from_integers: set[str]
) -> str:
    if op.op_type in NOT_QUANTIZABLE:
        return NOT_QUANTIZABLE[op.op_type]
    kind = OP_KINDS.get(op.op_type)
    if kind is None:
        return "Inductor's x86 lowering has no integer kernel for it"
    if kind in ("weighted", "lookup"):
        return "" if op.weight else "its weight is not constant"
    inputs = _tensor_inputs(node)
    if any(other.name in from_integers for other in inputs):
        return "works on values made from integer inputs, such as an attention mask, which would set the range"
    if any(_is_mask_constant(model, other) for other in inputs):
        return "its constant holds mask values, which would set the range"
    if kind == "residual":
        return "" if _kernel_of(model, node) else "computed in floating point: no convolution before it takes it along"
    if kind == "product" and (len(inputs) != 2 or _shape(inputs[0]) != _shape(inputs[1])):
        return "computed in floating point: the lowering takes products of two tensors of one shape"
    if not any(_through(other).name in found for other in inputs):
        return "nothing before it is quantized"
    return ""


def _kernel_of(model: ExportedModule, node: Node) -> tuple[Node, Node] | None:
    """The convolution in whose kernel the addition ``node`` is computed, and the input that comes from it."""
    inputs = _tensor_inputs(node)
    if len(inputs) != 2 or inputs[0] is inputs[1] or _shape(inputs[0]) != _shape(inputs[1]):
        return None
    order = {name: position for position, name in enumerate(model.nodes)}
    convolutions = [
        other
        for other in inputs
        if len(other.users) == 1 and other.name in model.by_node and model.by_node[other.name].op_type == "Conv2d"
    ]
    if not convolutions:
        return None
    last = max(convolutions, key=lambda other: order[other.name])
    return last, last


def _through(node: Node) -> Node:
    """The node whose kernel computes ``node``."""
    from distune.backends.pytorch.program import op_type_of

    while op_type_of(node) in _THROUGH and _tensor_inputs(node):
        node = _tensor_inputs(node)[0]
    return node


def _made_from_integers(model: ExportedModule) -> set[str]:
    """Nodes that depend on integer inputs and constants alone, other than rows of a table."""
    made: set[str] = set()
    for node in model.graph_module.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and not value.dtype.is_floating_point:
                made.add(node.name)
        elif node.op == "call_function":
            op = model.by_node.get(node.name)
            varying = [other for other in node.all_input_nodes if other.op != "get_attr"]
            if varying and all(other.name in made for other in varying) and not (op and op.weight):
                made.add(node.name)
    return made


def _is_mask_constant(model: ExportedModule, node: Node) -> bool:
    while node.op == "call_function" and node.all_input_nodes and node.target in (torch.ops.aten.slice.Tensor,):
        node = node.all_input_nodes[0]
    if node.op != "get_attr":
        return False
    value = model.tensor(str(node.target))
    return bool(value.numel() and value.dtype.is_floating_point and not (value.abs() < MASK_MAGNITUDE).all())


def _tensor_inputs(node: Node) -> list[Node]:
    return [other for other in node.all_input_nodes if isinstance(other.meta.get("val"), torch.Tensor)] or [
        other for other in node.all_input_nodes if other.op == "get_attr"
    ]


def _input(node: Node, position: int) -> Node:
    found = node.args[position]
    assert isinstance(found, Node)  # the schema of the op says so
    return found


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(each, torch.Tensor) and each.dtype.is_floating_point for each in values)


def _shape(node: Node) -> tuple[object, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
