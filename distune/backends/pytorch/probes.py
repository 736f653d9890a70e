"""Tensor errors in an exported graph: how far each op's output is off in the quantized model.

Scores mean what they mean in the ONNX Runtime backend. They are of groups, the units that fall back together, by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from distune.backends.base import Feed
from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.runnable import arguments_of
from distune.backends.pytorch.threads import intra_op_threads
from distune.backends.sensitivity import squares

_QUANTIZE = frozenset(
    {
        torch.ops.quantized_decomposed.quantize_per_tensor.default,
        torch.ops.quantized_decomposed.quantize_per_tensor.tensor,
    }
)


def op_mse(
    model: ExportedModule, quantized: GraphModule, outputs: Mapping[str, str], feeds: Sequence[Feed]
) -> dict[str, float]:
    """Mean squared error of each group's output in the quantized model against the fp32 one, divided by the power of
    the fp32 output; all groups in one pass over ``feeds``.

    Both graphs run side by side, and a value is given up when its last reader has run. So memory is bounded by what
    the two models need to run, plus the outputs whose turn in the other graph has not come: one in all where both
    graphs have one order, as converted ones do.

    Args:
        outputs: By group the node whose output leaves it last. Where that is quantized, its dequantized value is read.
    """
    readable = _dequantized(quantized, outputs.values())
    error, power = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0)
    with torch.inference_mode(), intra_op_threads(1):
        for feed in feeds:
            arguments = arguments_of(model, feed)
            expected = _watched(model.graph_module, arguments, {node: node for node in outputs.values()})
            actual = _watched(quantized, arguments, {inner: name for name, inner in readable.items()})
            for name, first, second in _met(expected, actual):
                difference, squared = squares(first.float().numpy(), second.float().numpy())
                for group, node in outputs.items():
                    if node == name:
                        error[group] += difference
                        power[group] += squared
    return {group: error[group] / power[group] if power[group] else 0.0 for group in outputs}


def last_nodes(model: ExportedModule, groups: Mapping[str, str]) -> dict[str, str]:
    """By group the node whose output leaves it last.

    Args:
        groups: Group by op name, in graph order.
    """
    found = {group: model.op[name].node for name, group in groups.items()}
    return {group: node for group, node in found.items() if isinstance(model.nodes[node].meta.get("val"), torch.Tensor)}


def walk(module: GraphModule, arguments: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Run a graph node by node: name and value of each. A value is given up after its last reader."""
    last_reader: dict[Node, Node] = {}
    for node in reversed(module.graph.nodes):
        for read in node.all_input_nodes:
            last_reader.setdefault(read, node)
    done: dict[Node, list[Node]] = {}
    for read, reader in last_reader.items():
        done.setdefault(reader, []).append(read)
    interpreter = Interpreter(module, garbage_collect_values=False)
    interpreter.args_iter = iter(module.graph.process_inputs(*arguments))
    for node in module.graph.nodes:
        value = interpreter.run_node(node)
        if node in last_reader:
            interpreter.env[node] = value
        yield node.name, value
        del value
        for read in done.get(node, ()):
            interpreter.env.pop(read, None)


def _watched(
    module: GraphModule, arguments: Sequence[Any], wanted: Mapping[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in walk(module, arguments):
        if name in wanted:
            yield wanted[name], value


def _met(
    first: Iterator[tuple[str, torch.Tensor]], second: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Values of one name from both, as soon as both have it; each side goes on only as far as is needed."""
    waiting: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    sides = (first, second)
    open_sides = [True, True]
    turn = 0
    while any(open_sides):
        turn = turn if open_sides[turn] else 1 - turn
        item = next(sides[turn], None)
        if item is None:
            open_sides[turn] = False
            continue
        name, value = item
        other = waiting[1 - turn].pop(name, None)
        if other is None:
            waiting[turn][name] = value
            turn = 1 - turn
        else:
            yield (name, other, value) if turn else (name, value, other)
        del item, value, other


def _dequantized(module: GraphModule, names: Any) -> dict[str, str]:
    """Where the value of each node can be read in the quantized graph."""
    nodes = {node.name: node for node in module.graph.nodes}
    out = {}
    for name in dict.fromkeys(names):
        node = nodes.get(name)
        if node is None:
            continue
        readers = list(node.users)
        if len(readers) == 1 and readers[0].target in _QUANTIZE:
            readers = list(readers[0].users)
            if len(readers) == 1:
                node = readers[0]
        out[name] = node.name
    return out
