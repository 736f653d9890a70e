"""Repeated blocks of a transformer, found from the modules that the ops belong to.

A block is the smallest module that holds an attention and the layers behind it: ``nn.TransformerEncoderLayer``, a GPT
block, a layer of BERT. Its heart is a softmax between two products of activations, or torch's fused attention; what
follows in the same module must hold two Linear layers or more (output projection, feed-forward network), which tells a
layer from its attention alone. The list that holds the layers is no block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch.fx import Node

from distune.backends.pytorch.program import ExportedModule, ModuleOp

_ATTENTION = frozenset({"Softmax", "_softmax", "scaled_dot_product_attention"})
_LAYERS = frozenset({"Linear", "Conv1d", "Conv2d"})
_BEHIND = 2
"""Layers behind the attention of a block at least."""


def find_blocks(model: ExportedModule, groups: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Names of the groups of each block, both in graph order.

    Args:
        groups: Group by op name, of the quantizable ops.
    """
    hearts = [op for op in model.ops if op.op_type in _ATTENTION]
    homes = dict.fromkeys(home for heart in hearts if (home := _home(model, hearts, heart)))
    blocks = []
    for home in homes:
        names = (op.name for op in model.ops if _is_in(op, home) and op.name in groups)
        blocks.append(tuple(dict.fromkeys(groups[name] for name in names)))
    return tuple(block for block in blocks if block)


def _home(model: ExportedModule, hearts: Sequence[ModuleOp], heart: ModuleOp) -> str:
    """Path of the block of an attention; empty where its module is none."""
    layers = [op for op in _behind(model, heart) if op.op_type in _LAYERS]
    for path in _paths(heart.module_path):
        children = {_child(other, path) for other in hearts if _is_in(other, path)}
        if sum(child.isdigit() for child in children) > 1:
            return ""  # the list of the layers: what is in it is no block
        if sum(_is_in(op, path) for op in layers) >= _BEHIND:
            return path
    return ""


def _behind(model: ExportedModule, op: ModuleOp) -> list[ModuleOp]:
    """The ops that depend on ``op``."""
    reached: set[Node] = set()
    waiting = [model.nodes[op.node]]
    while waiting:
        fresh = [reader for reader in waiting.pop().users if reader not in reached]
        reached.update(fresh)
        waiting.extend(fresh)
    names = {node.name for node in reached}
    return [other for other in model.ops if other.node in names]


def _paths(path: str) -> Iterator[str]:
    """A module's path, its parent's and so on; not the root."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _is_in(op: ModuleOp, path: str) -> bool:
    return op.module_path == path or op.module_path.startswith(f"{path}.")


def _child(op: ModuleOp, path: str) -> str:
    return op.module_path[len(path) + 1 :].partition(".")[0]
