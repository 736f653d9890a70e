"""The layers of an exported graph, Conv1d, Conv2d and Linear with a weight of their own, and its constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from distune.backends.pytorch.program import ExportedModule, ModuleOp
from distune.backends.recipes.layer import Layer, Padding

_KERNEL_RANKS = {"Conv1d": 1, "Conv2d": 2}


def layers(model: ExportedModule) -> Iterator[Layer]:
    """The layers of a module in graph order; names of tensors are names of nodes, of constants those in the state."""
    readers = readers_of_constants(model)
    for op in model.ops:
        if op.weight and readers[op.weight] == 1:
            layer = _layer_of(model, op)
            if layer is not None:
                yield layer


def readers_of_constants(model: ExportedModule) -> Counter[str]:
    """By how many nodes each parameter and buffer is read."""
    found: Counter[str] = Counter()
    for node in model.graph_module.graph.nodes:
        if node.op == "get_attr":
            found[str(node.target)] += len(node.users)
    return found


def constant(model: ExportedModule, name: str) -> NDArray[np.float32]:
    """The values of a parameter or buffer."""
    values: NDArray[np.float32] = model.tensor(name).float().numpy()
    return values


def with_constants(model: ExportedModule, values: Mapping[str, NDArray[Any]]) -> ExportedModule:
    """The same module with other values of some parameters and buffers; ``model`` is not changed."""
    module = model.fresh()
    for name, array in values.items():
        set_constant(module, name, array)
    return replace(model, graph_module=module)


def set_constant(module: GraphModule, name: str, values: NDArray[Any]) -> None:
    """Give ``module`` a tensor of its own in the place of a parameter or buffer, of the same type."""
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    before = getattr(owner, attribute)
    after = torch.from_numpy(np.array(values, order="C")).to(before.dtype)
    is_parameter = isinstance(before, torch.nn.Parameter)
    setattr(owner, attribute, torch.nn.Parameter(after, requires_grad=False) if is_parameter else after)


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by name, defaults included."""
    known = node.target._schema.arguments
    found = {item.name: item.default_value for item in known if item.has_default_value()}
    found.update(zip((item.name for item in known), node.args, strict=False))
    found.update(node.kwargs)
    return found


def _layer_of(model: ExportedModule, op: ModuleOp) -> Layer | None:
    if op.op_type != "Linear" and op.op_type not in _KERNEL_RANKS:
        return None
    node, weight = model.nodes[op.node], model.tensor(op.weight)
    given = arguments(node)
    source, bias = given["input"], given["bias"]
    if source.op == "get_attr" or weight.dtype != torch.float32 or not weight.numel():
        return None
    if isinstance(bias, Node) and bias.op != "get_attr":
        return None
    common = {
        "name": op.name,
        "weight": op.weight,
        "shape": tuple(weight.shape),
        "input": source.name,
        "output": node.name,
        "bias": str(bias.target) if isinstance(bias, Node) else "",
    }
    if op.op_type == "Linear":
        return Layer(**common, key=f"rows:{source.name}")
    rank = _KERNEL_RANKS[op.op_type]
    value = source.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() != rank + 2:
        return None  # without a batch axis the channels lie elsewhere
    strides, dilations = _each(given["stride"], rank), _each(given["dilation"], rank)
    groups, padding = int(given["groups"]), _padding(given["padding"], tuple(weight.shape[2:]), dilations)
    geometry = f"{list(weight.shape[2:])} groups={groups} strides={strides} dilations={dilations} padding={padding}"
    return Layer(
        **common,
        key=f"patches{geometry}:{source.name}",
        is_conv=True,
        groups=groups,
        strides=strides,
        dilations=dilations,
        padding=padding,
    )


def _padding(given: Any, kernel: tuple[int, ...], dilations: tuple[int, ...]) -> Padding:
    if given == "valid":
        return ((0, 0),) * len(kernel)
    if given == "same":  # of stride 1 alone
        totals = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((size, size) for size in _each(given, len(kernel)))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return tuple(int(each) for each in (values * rank if len(values) == 1 else values))


__all__ = ["arguments", "constant", "layers", "readers_of_constants", "set_constant", "with_constants"]
