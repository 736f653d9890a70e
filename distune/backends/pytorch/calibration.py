"""One sweep over calibration batches through the fp32 graph, for all algorithms at once.

A value is counted as soon as it is computed and given up when its last reader has run, so memory is bounded by what the
model itself needs for one batch, plus what ``backends.statistics`` states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.fx import Interpreter, Node

from distune.backends.base import Feed
from distune.backends.pytorch.capability import quantized_edges
from distune.backends.pytorch.options import OP_KINDS
from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.runnable import arguments_of
from distune.backends.pytorch.threads import intra_op_threads
from distune.backends.recipes.variants import LayerCollector
from distune.backends.statistics import CalibrationStatistics
from distune.space.capability import Capability

Watcher = Callable[[str, torch.Tensor], None]
"""Told the name of a node and its value."""


class Watching(Interpreter):  # type: ignore[misc]
    """Runs a graph and shows the values of chosen nodes as they come.

    Args:
        model: The graph.
        names: Nodes to show.
        watch: What they are shown to.
    """

    def __init__(self, model: torch.fx.GraphModule, names: Iterable[str], watch: Watcher) -> None:
        super().__init__(model, garbage_collect_values=True)
        self._names = frozenset(names)
        self._watch = watch

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self._names and isinstance(value, torch.Tensor):
            self._watch(n.name, value)
        return value


def calibrated_tensors(model: ExportedModule, capability: Capability) -> tuple[str, ...]:
    """Nodes whose range some static op may need, in graph order."""
    wanted: set[str] = set()
    for info in capability.ops:
        op = model.op[info.name]
        if any(option.mode == "static" and option.activation is not None for option in info.options):
            wanted.update(quantized_edges(model, op).inputs)
            if OP_KINDS[op.op_type] == "joined":
                wanted.add(op.node)
    return tuple(name for name in model.nodes if name in wanted)


def collect(
    model: ExportedModule,
    tensors: Sequence[str],
    batches: Iterable[tuple[int, Feed]],
    statistics: CalibrationStatistics,
    layers: LayerCollector | None = None,
) -> None:
    """Count the values of ``tensors`` over ``(batch number, feed)`` pairs.

    One thread is used, so that the values do not depend on how many there are.

    Args:
        statistics: What they are counted in.
        layers: Collects what recipes need of the inputs of layers too.
    """
    ranged = frozenset(tensors)
    current = 0

    def count(name: str, value: torch.Tensor) -> None:
        array = value.detach().float().numpy()
        if name in ranged:
            statistics.add(current, {name: array})
        if layers is not None:
            layers.add(statistics, {name: array})

    runner = Watching(model.graph_module, (*tensors, *(() if layers is None else layers.tensors)), count)
    with torch.inference_mode(), intra_op_threads(1):
        for number, feed in batches:
            current = number
            runner.run(*arguments_of(model, feed))
