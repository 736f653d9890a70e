"""Where a quantized graph can be cut in two, and the two parts.

A cut is a tensor of integers (a QuantizeLinear's output) through which everything passes that the outputs take from the
inputs. Between groups of quantized ops ONNX Runtime fuses nothing across such a tensor, whereas a cut in floating point
tears fused kernels apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from distune.backends.onnxruntime.graph import WEIGHTED, tensors_read


@dataclass(frozen=True)
class Cut:
    """One place to cut.

    Attributes:
        tensor: Name of the tensor of integers.
        element_type: Its ``TensorProto`` type.
        ops_before: Ops with weights that are over when it is there: what a model that begins here saves.
    """

    tensor: str
    element_type: int
    ops_before: int


_NOTICEABLE = 0.25
"""Of a run of the whole model: what a cut must save, over all models together, to be worth its tensors."""


def find_cuts(model: onnx.ModelProto) -> list[Cut]:
    """The cuts of a quantized graph, in its order; none where its nodes are not in topological order."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    reads = [[name for name in tensors_read(node) if name not in constants] for node in graph.node]
    left: dict[str, int] = {output.name: 1 for output in graph.output}
    for names in reads:
        for name in names:
            left[name] = left.get(name, 0) + 1
    live = {value.name for value in graph.input if value.name not in constants}
    fixed: set[str] = set()
    found: list[Cut] = []
    weighted = 0
    for node, names in zip(graph.node, reads, strict=True):
        if any(name not in live and name not in fixed for name in names):
            return []
        if all(name in fixed for name in names):  # made of constants alone, such as a dequantized weight
            fixed.update(node.output)
            continue
        weighted += node.op_type in WEIGHTED
        for name in names:
            left[name] -= 1
            if not left[name]:
                live.discard(name)
        live.update(name for name in node.output if left.get(name))
        zero_point = constants.get(node.input[2]) if node.op_type == "QuantizeLinear" and len(node.input) > 2 else None
        if zero_point is not None and live == {node.output[0]} and weighted:
            found.append(Cut(node.output[0], zero_point.data_type, weighted))
    return found


def spread(cuts: Sequence[Cut], count: int) -> list[Cut]:
    """At most ``count`` cuts, about equally many ops apart; of those between the same ops the last one."""
    last = list({cut.ops_before: cut for cut in cuts}.values())
    step = max(1.0, len(last) / count)
    return [last[int(index * step)] for index in range(min(count, len(last)))]


def worth_most(
    cuts: Sequence[Cut], sizes: Mapping[str, int], costs: Mapping[str, float], whole: float, limit: int
) -> list[Cut]:
    """The cuts to keep tensors of: those that save most for their bytes, as long as there is room.

    Args:
        cuts: In the graph's order.
        sizes: Bytes by tensor.
        costs: What running from a cut costs, by tensor.
        whole: What running all of the model costs.
        limit: Bytes of all together.
    """
    ops = max((cut.ops_before for cut in cuts), default=0) + 1
    chosen: list[Cut] = []

    def saved(with_cuts: Sequence[Cut]) -> float:
        """Over all models that differ in one op each."""
        return sum(
            max((whole - costs[cut.tensor] for cut in with_cuts if cut.ops_before <= op), default=0.0)
            for op in range(ops)
        )

    while True:
        left = limit - sum(sizes[cut.tensor] for cut in chosen)
        now = saved(chosen)
        gains = {
            cut: gain / max(1, sizes[cut.tensor])
            for cut in cuts
            if cut not in chosen
            and sizes[cut.tensor] <= left
            and (gain := saved([*chosen, cut]) - now) > _NOTICEABLE * whole
        }
        if not gains:
            return [cut for cut in cuts if cut in chosen]
        chosen.append(max(gains, key=lambda cut: gains[cut]))


def part(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto | None:
    """The part of ``model`` that makes ``outputs`` of ``inputs``; ``None`` where it needs more inputs than these."""
    given = {value.name for value in inputs}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    others = {value.name for value in model.graph.input} - given - constants.keys()
    wanted = {value.name for value in outputs}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output) - given:
            nodes.append(node)
            wanted.update(tensors_read(node))
    if wanted & others:
        return None
    out = onnx.ModelProto(ir_version=model.ir_version)
    out.opset_import.extend(model.opset_import)
    out.functions.extend(model.functions)
    out.graph.name = model.graph.name
    out.graph.node.extend(reversed(nodes))
    out.graph.initializer.extend(tensor for name, tensor in constants.items() if name in wanted)
    out.graph.input.extend(inputs)
    out.graph.output.extend(outputs)
    return out


def value_of(cut: Cut, dims: Sequence[int | str | None] | None = None) -> onnx.ValueInfoProto:
    """``cut``'s tensor as input or output of a graph; what is known of its dimensions are numbers and names."""
    return helper.make_tensor_value_info(cut.tensor, cut.element_type, dims)


def computed_alike(base: onnx.ModelProto, other: onnx.ModelProto, tensors: Collection[str]) -> set[str]:
    """Those of ``tensors`` that ``other`` computes from the inputs by the very same nodes and constants as ``base``."""
    nodes = {node.name: node for node in base.graph.node}
    constants = {tensor.name: tensor for tensor in base.graph.initializer}
    same = {value.name for value in base.graph.input}
    same.update(tensor.name for tensor in other.graph.initializer if constants.get(tensor.name) == tensor)
    for node in other.graph.node:
        if all(name in same for name in tensors_read(node)) and nodes.get(node.name) == node:
            same.update(node.output)
    return same.intersection(tensors)
