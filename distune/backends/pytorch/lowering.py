"""What Inductor's x86 lowering makes of a reference graph: which ops run on integers, which in half precision."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._export.utils import _is_cia_op
from torch._inductor.constant_folding import constant_fold
from torch._inductor.fx_passes.freezing_patterns import freezing_passes
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch.fx import GraphModule, Node

from distune.backends.pytorch.program import ExportedModule, ModuleOp

_WEIGHT_SCALE = 4
"""Position of the weight's scales among the arguments of oneDNN's integer kernels."""


@dataclass(frozen=True)
class Execution:
    """How the weighted ops of a lowered model run.

    Attributes:
        integer: Names of the ops that run on integers.
        reasons: Why another op that the config quantizes does not, by op name.
        kernels: Every function that the lowered graph calls, with the dtype of what it gives.
    """

    integer: tuple[str, ...]
    reasons: Mapping[str, str]
    kernels: tuple[tuple[str, str], ...]


def lowered(module: GraphModule, model: ExportedModule) -> GraphModule:
    """The graph after Inductor's freezing passes: constants folded, weights packed for oneDNN.

    As ``torchao.quantization.pt2e.lowering`` does it, but with views as reshapes, in which form Inductor itself sees
    them: its patterns would miss every Linear whose input has more than two axes.
    """
    given = model.example_inputs if model.partition is None else model.partition.examples
    examples = tuple(example for example in given if example is not None)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about trees and tensors that its passes build
        program = torch.export.export(module, examples, strict=True)
        out: GraphModule = program.run_decompositions(_composed_ops()).module()
        view_to_reshape(out)
        for node in out.graph.find_nodes(op="call_function", target=torch.ops.aten.t.default):
            node.target, node.args = torch.ops.aten.permute.default, (node.args[0], [1, 0])
        out.recompile()
        freezing_passes(out, examples)
        constant_fold(out)
        return out


def _composed_ops() -> dict[Any, Any]:
    """Decompositions of ops that are made of others (linear), as they come before autograd; not of primitive ones."""
    table = torch.export.default_decompositions()
    return {op: table[op] for op in list(table) if _is_cia_op(op)}


def execution(module: GraphModule, model: ExportedModule, quantized: Sequence[str]) -> Execution:
    """Read from the lowered graph how the ops ``quantized`` run.

    Args:
        module: The reference graph, weights as integers.
        model: The fp32 model.
        quantized: Names of the weighted ops that the config quantizes.
    """
    owners = _owners_of_scales(module, model)
    graph = lowered(module, model).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    integer = {owners[name] for node in calls if (name := _scale_read_by(node)) in owners}
    reasons = {
        name: _reason(model.op[name]) for name in quantized if name not in integer and name in set(owners.values())
    }
    kernels = tuple((str(node.target), _dtype_of(node)) for node in calls)
    return Execution(tuple(name for name in quantized if name in integer), reasons, kernels)


def _owners_of_scales(module: GraphModule, model: ExportedModule) -> dict[str, str]:
    """Name of the op by the attribute that holds the scales of its weight."""
    found: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.target is not torch.ops.quantized_decomposed.dequantize_per_channel.default:
            continue
        scale = node.args[1]
        for reader in node.users:
            op = model.by_node.get(reader.name)
            if op is not None and isinstance(scale, Node):
                found[str(scale.target)] = op.name
    return found


def _scale_read_by(node: Node) -> str:
    name = str(node.target)
    if not name.startswith(("onednn.qconv", "onednn.qlinear")) or len(node.args) <= _WEIGHT_SCALE:
        return ""
    scale = node.args[_WEIGHT_SCALE]
    return str(scale.target) if isinstance(scale, Node) else ""


def _reason(op: ModuleOp) -> str:
    if op.op_type in ("Embedding", "EmbeddingBag"):
        return "rows of the integer table are turned into floating point as they are looked up"
    return f"the lowering found no integer kernel for this {op.op_type}"


def _dtype_of(node: Node) -> str:
    value: Any = node.meta.get("val")
    return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else ""
