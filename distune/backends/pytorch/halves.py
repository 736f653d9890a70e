"""Ops in bf16 or fp16: their inputs and weights are cast, their output is cast back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from distune.backends.pytorch.program import ExportedModule
from distune.space.op_config import TuningConfig

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

_cast = torch.ops.aten.to.dtype


def write_halves(module: GraphModule, model: ExportedModule, config: TuningConfig) -> None:
    """Put the ops that ``config`` has in bf16 or fp16 into that precision, in place.

    Between two such ops that follow each other directly the value stays in their precision: a cast forth and back again
    changes nothing.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    changed = False
    for name, op_config in config.ops:
        dtype = DTYPES.get(op_config.mode)
        if dtype is None or name not in model.op:
            continue
        _cast_op(module, nodes[model.op[name].node], dtype)
        changed = True
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()


def _cast_op(module: GraphModule, node: Node, dtype: torch.dtype) -> None:
    graph = module.graph
    readers = list(node.users)
    for other in node.all_input_nodes:
        value = other.meta.get("val")
        if isinstance(value, torch.Tensor) and not value.dtype.is_floating_point:
            continue
        if other.target is _cast and other.args[0].meta.get("val_dtype") is dtype:
            node.replace_input_with(other, other.args[0])
            continue
        with graph.inserting_before(node):
            narrow = graph.call_function(_cast, (other, dtype))
        if isinstance(value, torch.Tensor):
            narrow.meta["val"] = value.to(dtype)
        node.replace_input_with(other, narrow)
    with graph.inserting_after(node):
        wide = graph.call_function(_cast, (node, torch.float32))
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        wide.meta["val"] = value
        node.meta["val"] = value.to(dtype)
    wide.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
    node.meta["val_dtype"] = dtype
    for reader in readers:
        reader.replace_input_with(node, wide)
