"""Cross-layer equalization of an exported graph: which layers are neighbours, and their new weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from torch.fx import Node

from distune.backends.channel_statistics import ChannelStatistics
from distune.backends.pytorch.program import ExportedModule, op_type_of
from distune.backends.pytorch.recipes.layers import arguments, constant, layers, readers_of_constants, with_constants
from distune.backends.recipes.equalization import Pair, equalized

_RELU6_CUT = 6.0


def pairs(model: ExportedModule) -> tuple[Pair, ...]:
    """The pairs of layers that can be equalized, in graph order."""
    return tuple(_pairs(model))


def equalize(
    model: ExportedModule, channels: Mapping[str, ChannelStatistics], only_convs: bool = False
) -> ExportedModule:
    """The module with every pair of layers equalized; ``model`` is not changed.

    Args:
        channels: Of the inputs of layers, by ``channel_key``.
        only_convs: Leave Linear as it is.
    """
    found = [pair for pair in pairs(model) if pair.first.is_conv or not only_convs]
    return with_constants(model, equalized(found, partial(constant, model), channels))


def _pairs(model: ExportedModule) -> Iterator[Pair]:
    readers = readers_of_constants(model)
    by_node = {layer.output: layer for layer in layers(model)}
    for first in by_node.values():
        if first.bias and readers[first.bias] != 1:
            continue
        between, reader = _behind(model.nodes[first.output])
        second = by_node.get(reader.name) if reader is not None else None
        if second is not None and second.inputs == first.outputs and first.is_conv == second.is_conv:
            yield Pair(first, second, None if between is None else _cut(between))


def _behind(node: Node) -> tuple[Node | None, Node | None]:
    """The activation behind a layer, if it is one that positive factors pass through, and what alone reads that."""
    activation: Node | None = None
    while (reader := _only_reader(node)) is not None:
        if activation is None and _is_homogeneous(reader):
            activation = reader
        elif op_type_of(reader) != "dropout":
            return activation, reader
        node = reader
    return activation, None


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_homogeneous(node: Node) -> bool:
    """A ReLU, or a clip from 0 on."""
    op_type = op_type_of(node)
    if op_type in ("ReLU", "ReLU6"):
        return True
    if op_type == "Hardtanh":
        return bool(arguments(node)["min_val"] == 0)
    return op_type == "clamp" and arguments(node).get("min") == 0 and not isinstance(arguments(node)["max"], Node)


def _cut(node: Node) -> float | None:
    """Where a clip cuts; ``None`` where nothing does."""
    op_type = op_type_of(node)
    if op_type == "ReLU6":
        return _RELU6_CUT
    largest = {"Hardtanh": "max_val", "clamp": "max"}.get(op_type)
    found = None if largest is None else arguments(node)[largest]
    return None if found is None else float(found)


__all__ = ["equalize", "pairs"]
