"""SmoothQuant of an exported graph: what can be smoothed, and where the division goes.

The division is folded into the LayerNorm or the Linear before where nobody else reads the tensor, else it is a ``mul``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from distune.backends.pytorch.program import ExportedModule, op_type_of
from distune.backends.pytorch.recipes.layers import arguments, constant, layers, readers_of_constants, with_constants
from distune.backends.recipes.layer import Layer
from distune.backends.recipes.smoothing import Factors, Smoothable

_PREFIX = "_smooth_scale_"


def smoothable(model: ExportedModule) -> tuple[Smoothable, ...]:
    """The activations before Linear layers, in graph order."""
    by_tensor: dict[str, list[Layer]] = {}
    for layer in layers(model):
        if not layer.is_conv:
            by_tensor.setdefault(layer.input, []).append(layer)
    return tuple(
        Smoothable(
            tensor,
            tuple(members),
            {reader.name for reader in model.nodes[tensor].users} == {layer.output for layer in members},
        )
        for tensor, members in by_tensor.items()
    )


def smooth(model: ExportedModule, found: Factors, folding: bool = True) -> ExportedModule:
    """The module with the given activations divided by their factors and weights that make up for it.

    Args:
        model: Not changed.
        folding: Put the division into what comes before where that can be; otherwise always a ``mul``.
    """
    changed: dict[str, NDArray[Any]] = {}

    def value(name: str) -> NDArray[Any]:
        return changed[name] if name in changed else constant(model, name)

    inserted: dict[str, tuple[Smoothable, NDArray[np.float32]]] = {}
    by_node = {layer.output: layer for layer in layers(model)}
    for spot in smoothable(model):
        s = found.get(spot.tensor)
        if s is None:
            continue
        for layer in spot.members:
            changed[layer.weight] = layer.scale_inputs(value(layer.weight), s)
        foldable = list(_foldable(model, spot, by_node)) if folding and spot.alone else []
        for name, before in foldable:
            changed[name] = value(name) / s if before is None else before.scale_outputs(value(name), 1 / s)
        if not foldable:
            inserted[spot.tensor] = spot, s
    out = with_constants(model, changed)
    return replace(out, graph_module=_with_muls(out.graph_module, inserted)) if inserted else out


def _foldable(model: ExportedModule, spot: Smoothable, by_node: dict[str, Layer]) -> Iterator[tuple[str, Layer | None]]:
    """The constants that make the tensor, weights with their layer; none where the division cannot be folded."""
    readers = readers_of_constants(model)
    node = _without_dropout(model.nodes[spot.tensor])
    if op_type_of(node) == "LayerNorm":
        given = arguments(node)
        names = [str(each.target) for each in (given["weight"], given["bias"]) if each is not None]
        if len(given["normalized_shape"]) == 1 and given["weight"] is not None and all(readers[n] == 1 for n in names):
            yield from ((name, None) for name in names)
        return
    if op_type_of(node) == "ReLU" and len(node.all_input_nodes[0].users) == 1:
        node = _without_dropout(node.all_input_nodes[0])
    layer = by_node.get(node.name)
    if layer is None or layer.is_conv or (layer.bias and readers[layer.bias] != 1):
        return
    yield layer.weight, layer
    if layer.bias:
        yield layer.bias, None


def _without_dropout(node: Node) -> Node:
    """What a dropout, which does nothing in inference, reads, if nobody else reads that."""
    while op_type_of(node) == "dropout" and len(node.all_input_nodes[0].users) == 1:
        node = node.all_input_nodes[0]
    return node


def _with_muls(module: GraphModule, inserted: dict[str, tuple[Smoothable, NDArray[np.float32]]]) -> GraphModule:
    """Let the members of each spot read their activation times the inverse factors; ``module`` is changed."""
    nodes = {node.name: node for node in module.graph.nodes}
    for number, (tensor, (spot, s)) in enumerate(inserted.items()):
        source, target = nodes[tensor], f"{_PREFIX}{number}"
        module.register_buffer(target, torch.from_numpy(1 / s))
        with module.graph.inserting_before(nodes[spot.members[0].output]):
            inverse = module.graph.get_attr(target)
            smoothed = module.graph.call_function(torch.ops.aten.mul.Tensor, (source, inverse))
        smoothed.meta = copy.copy(source.meta)
        smoothed._rename(f"{tensor}_smoothed")
        for layer in spot.members:
            nodes[layer.output].replace_input_with(source, smoothed)
    module.recompile()
    return module


__all__ = ["smooth", "smoothable"]
