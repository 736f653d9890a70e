"""Repeated blocks of a transformer, found from the graph: an attention and what follows it up to the next one.

The heart of a block is a softmax between two products of activations, or one of ONNX Runtime's fused attention nodes.
What projects its inputs begins the block; what lies between it and the next block's projections (output projection,
feed-forward network) ends it. Where layers are normalized, before or after, makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from distune.backends.onnxruntime.graph import GraphIndex

FUSED_ATTENTION = frozenset(
    {"Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention"}
)
"""Op types that hold a whole attention."""

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "Attention"})
_PASSED = frozenset({"Cast", "Dropout", "Identity", "Mul", "Where", "Reshape", "Transpose"})
_AFTER_ATTENTION = 3
"""Products that follow the attention of the only block of a model: output projection and feed-forward network."""


@dataclass(frozen=True)
class _Attention:
    """The tensors that go into an attention, the mask left out, and the node whose output leaves it."""

    inputs: tuple[str, ...]
    end: onnx.NodeProto


def find_blocks(model: onnx.ModelProto, index: GraphIndex, groups: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Names of the groups of each block, both in graph order.

    Args:
        groups: Group by op name, of the quantizable ops.
    """
    cores = [core for node in model.graph.node if (core := _attention(index, node)) is not None]
    position = {node.name: number for number, node in enumerate(model.graph.node)}
    projections = [_projections(index, core) for core in cores]
    before = [_ancestors(index, [name for node in nodes for name in node.input]) for nodes in projections]
    blocks: list[tuple[str, ...]] = []
    for number in range(len(cores)):
        if number + 1 < len(cores):
            members = before[number + 1] - before[number]
        else:
            wanted = _tail_length(index, cores, before, number)
            members = _tail(model, index, cores[number], wanted) | _between(index, projections[number], cores[number])
        members |= {node.name for node in projections[number]}
        ordered = sorted((name for name in members if name in groups), key=position.__getitem__)
        blocks.append(tuple(dict.fromkeys(groups[name] for name in ordered)))
    return tuple(block for block in blocks if block)


def _attention(index: GraphIndex, node: onnx.NodeProto) -> _Attention | None:
    if node.op_type in FUSED_ATTENTION:
        inputs = node.input[:1] if node.op_type == "Attention" and node.domain else node.input[:3]
        return _Attention(tuple(name for name in inputs if name), node)
    if node.op_type != "Softmax":
        return None
    scores = _nearest_product(index, node.input[0])
    context = next(iter(_products_after(index, node.output[0])), None)
    if scores is None or context is None:
        return None
    return _Attention((*scores.input, *(name for name in context.input if not index.is_constant(name))), context)


def _nearest_product(index: GraphIndex, tensor: str) -> onnx.NodeProto | None:
    """The product of two activations whose scaled and masked result ``tensor`` is."""
    seen: set[str] = set()
    waiting = [tensor]
    while waiting:
        producer = index.producer.get(waiting.pop(0))
        if producer is None or producer.name in seen:
            continue
        seen.add(producer.name)
        if producer.op_type == "MatMul":
            return None if any(index.is_constant(name) for name in producer.input) else producer
        if len(seen) < 16:
            waiting.extend(producer.input)
    return None


def _products_after(index: GraphIndex, tensor: str) -> Iterable[onnx.NodeProto]:
    for reader in index.consumers.get(tensor, ()):
        if reader.op_type == "MatMul" and not any(index.is_constant(name) for name in reader.input):
            yield reader
        elif reader.op_type in _PASSED:
            yield from _products_after(index, reader.output[0])


def _projections(index: GraphIndex, core: _Attention) -> tuple[onnx.NodeProto, ...]:
    """The weighted products nearest to the inputs of an attention; a fused node with weights is its own."""
    if core.end.op_type == "Attention" and len(core.end.input) > 1 and index.is_constant(core.end.input[1]):
        return (core.end,)
    found: dict[str, onnx.NodeProto] = {}
    seen: set[str] = set()
    waiting = list(core.inputs)
    while waiting:
        tensor = waiting.pop()
        producer = index.producer.get(tensor)
        if tensor in seen or producer is None or producer.op_type in ("Softmax", "Shape"):
            continue
        seen.add(tensor)
        if _is_weighted(index, producer):
            found[producer.name] = producer
        else:
            waiting.extend(producer.input)
    return tuple(found.values())


def _is_weighted(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return node.op_type in _PRODUCTS and any(index.is_constant(name) for name in node.input[:2])


def _ancestors(index: GraphIndex, tensors: Sequence[str]) -> set[str]:
    """Names of the nodes on which ``tensors`` depend."""
    found: set[str] = set()
    waiting = list(tensors)
    while waiting:
        producer = index.producer.get(waiting.pop())
        if producer is not None and producer.name not in found:
            found.add(producer.name)
            waiting.extend(name for name in producer.input if name)
    return found


def _between(index: GraphIndex, projections: Sequence[onnx.NodeProto], core: _Attention) -> set[str]:
    before = _ancestors(index, [name for node in projections for name in node.input])
    return (_ancestors(index, list(core.end.output)) - before) | {core.end.name}


def _tail_length(index: GraphIndex, cores: Sequence[_Attention], before: Sequence[set[str]], number: int) -> int:
    """Weighted products after the attention of the block before, which the last block repeats."""
    if number == 0:
        return _AFTER_ATTENTION
    inside = before[number] - before[number - 1] - _ancestors(index, list(cores[number - 1].end.output))
    return sum(_is_weighted(index, index.nodes[name]) for name in inside)


def _tail(model: onnx.ModelProto, index: GraphIndex, core: _Attention, wanted: int) -> set[str]:
    """What depends on an attention, up to its ``wanted``-th weighted product and what directly follows that one."""
    reached, found = set(core.end.output), set[str]()
    for node in model.graph.node:
        if node.name == core.end.name or not reached.intersection(node.input):
            continue
        if _is_weighted(index, node):
            if not wanted:
                break
            wanted -= 1
        found.add(node.name)
        reached.update(node.output)
    return found
