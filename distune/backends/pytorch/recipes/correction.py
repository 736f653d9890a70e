"""Corrections of a quantized graph: which tensors hold a layer, and how they are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from distune.backends.pytorch.program import ExportedModule, named_tensor
from distune.backends.pytorch.recipes.layers import constant, layers, readers_of_constants, set_constant
from distune.backends.recipes.correction import (
    CORRECTIONS,
    Bytes,
    Corrections,
    RoundingCache,
    StoredWeight,
    bias_shift,
    bytes_of,
    correct_weight,
    corrected_values,
)
from distune.backends.recipes.layer import Layer
from distune.backends.statistics import CalibrationStatistics
from distune.errors import TrialError
from distune.space.op_config import TuningConfig


def correct(
    module: GraphModule,
    model: ExportedModule,
    config: TuningConfig,
    statistics: CalibrationStatistics,
    cache: RoundingCache,
    reduce_range: bool = False,
) -> Corrections:
    """Apply the corrections among the recipes of ``config`` to its static layers, in place.

    One scale for a whole tensor is stored as equal scales of all channels, so that ``weight_correction`` gives each
    channel a factor of its own there too.

    Args:
        module: As ``convert.converted`` makes it from ``model``.
        statistics: Of ``model``, with channels, and moments where ``adaround`` is among the recipes.
        cache: Rounding that is known already; filled as a side effect.
        reduce_range: Weights are within 7 bits (see ``cpu.needs_reduce_range``).

    Returns:
        What was done; nothing where none of them is among the recipes.
    """
    recipes = dict(config.recipes)
    done = dict.fromkeys((name for name in CORRECTIONS if recipes.get(name)), 0)
    if not done:
        return Corrections({}, {})
    state = _State(module)
    nodes = {node.name: node for node in module.graph.nodes}
    by_name, readers = config.by_name, readers_of_constants(model)
    for layer in layers(model):
        stored = _stored(state, nodes[layer.output], layer, reduce_range)
        if stored is None or layer.name not in by_name or by_name[layer.name].mode != "static":
            continue
        weight = layer.matrix(constant(model, layer.weight).astype(np.float64))
        corrected = correct_weight(layer, weight, stored.weight, done, statistics, cache)
        for name in corrected.done:
            done[name] += 1
        if not np.array_equal(corrected.integers, stored.weight.integers):
            state.replace(stored.name, layer.weight_of(corrected.integers))
        if not np.all(corrected.factor == 1):
            state.replace(stored.scale_name, stored.weight.scale * corrected.factor.reshape(-1))
        if "fast_bias_correction" in done and readers[layer.bias] == 1:
            shift = bias_shift(layer, corrected.error, statistics)
            if shift is not None:
                state.replace(layer.bias, state.values(layer.bias) - shift)
                done["fast_bias_correction"] += 1
    return Corrections(done, state.changed)


def restore(module: GraphModule, saved: Mapping[str, str]) -> None:
    """Make the corrections of ``Corrections.to_plain`` again on the same quantized graph, in place.

    Raises:
        TrialError: The graph has no such tensor.
    """
    state = _State(module)
    known = module.state_dict()
    for name, text in saved.items():
        if name not in known:
            raise TrialError(f"the saved config corrects a constant {name!r} that this model does not have")
        state.replace(name, corrected_values(name, state.values(name), text))


class _State:
    """The tensors of a quantized graph, with what was replaced among them."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self.changed: dict[str, tuple[Bytes, Bytes]] = {}

    def values(self, name: str) -> NDArray[Any]:
        """Of the tensor of a qualified name."""
        values: NDArray[Any] = named_tensor(self._module, name).numpy()
        return values

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Give a tensor other values of the same type; the tensor that others may share is left as it is."""
        original = self.values(name)
        before = self.changed[name][0] if name in self.changed else bytes_of(original)
        after = np.asarray(values, original.dtype, order="C")
        set_constant(self._module, name, after)
        self.changed[name] = (before, bytes_of(after))


@dataclass(frozen=True)
class _Stored:
    """A quantized weight in the graph: names of its integers and its scales, and what they hold."""

    name: str
    scale_name: str
    weight: StoredWeight


def _stored(state: _State, node: Node, layer: Layer, reduce_range: bool) -> _Stored | None:
    """The integers of a layer; ``None`` where its weight is not quantized, or in another form."""
    dequantize = node.args[1]
    if not isinstance(dequantize, Node) or dequantize.op != "call_function" or len(dequantize.args) < 3:
        return None
    parts = dequantize.args[:3]
    if not all(isinstance(part, Node) and part.op == "get_attr" for part in parts):
        return None
    names = [str(part.target) for part in parts if isinstance(part, Node)]
    integers, scale, zero = (state.values(name) for name in names)
    if integers.dtype != np.int8:
        return None
    weight = StoredWeight(
        layer.matrix(integers.astype(np.float64)),
        scale.astype(np.float64),
        zero.astype(np.float64),
        (-64, 64) if reduce_range else (-127, 127),
        integers.dtype,
    )
    return _Stored(names[0], names[1], weight)


__all__ = ["correct", "restore"]
