"""Weight-only quantization of Linear: what is offered, what is calibrated, and how it is written into a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from distune.backends.base import Feed
from distune.backends.pytorch.calibration import Watching
from distune.backends.pytorch.convert import prune
from distune.backends.pytorch.packed import Kind, PackedLinear, kernel_of, linear_of
from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.runnable import arguments_of
from distune.backends.pytorch.threads import intra_op_threads
from distune.backends.statistics import CalibrationStatistics
from distune.backends.weight_only.grouped import BITS, GroupedWeight, WeightFormat
from distune.backends.weight_only.quantize import SETTINGS_RECIPES
from distune.backends.weight_only.quantizer import (
    STORAGE,
    WeightOnlyQuantizer,
    check_recipes,
    settings_recipes,
    tensor_options,
)
from distune.errors import TrialError
from distune.space.capability import Capability, OpInfo, Recipe
from distune.space.op_config import FP32, OpConfig

STORAGES = ("packed", "native", "dequantized")
"""How weights are stored (recipe ``STORAGE``).

``packed``: in their own width, made float at every call. ``native``: for ATen's integer kernels, which round the
inputs to bfloat16; formats that they do not hold are not offered. ``dequantized``: as fp32."""

WEIGHT_ONLY_RECIPES = frozenset({*SETTINGS_RECIPES, STORAGE})
"""Recipes that approach weight_only alone has."""

_WIDTHS = (4, 8, *(bits for bits in reversed(BITS) if bits not in (4, 8)))
_PREFIX = "_weight_only_"
_REMARKS: Mapping[Kind, str] = {
    "int4": "weights run on the int4 kernel, inputs rounded to bfloat16",
    "int8": "weights run on the int8 kernel, inputs rounded to bfloat16",
    "dequantized": "weights stored dequantized, as fp32: no bytes are saved",
}


def weight_only_capability(
    model: ExportedModule, capability: Capability, recipes: Mapping[str, Any], calibrated: bool
) -> Capability:
    """What ``capability`` is under approach ``weight_only``: every Linear with a constant weight, each by itself.

    Embeddings stay as they are: a table is read by rows and has no input channels to share a scale.

    Args:
        recipes: Those that the user fixed.
        calibrated: There are calibration data; without them GPTQ and AWQ are not offered.

    Raises:
        ModelError: A recipe of the user has a value that it does not take.
    """
    check_recipes(recipes, STORAGES)
    storage = str(recipes.get(STORAGE, "packed"))
    ops: list[OpInfo] = []
    excluded: list[tuple[str, str, str]] = []
    reasons = {name for name, _, _ in capability.excluded}
    known = {op.name for op in capability.ops}
    by_width: dict[int, tuple[OpConfig, ...]] = {}
    for op in model.ops:
        if _is_quantizable(model, op.name):
            channels = model.tensor(op.weight).shape[1]
            if channels not in by_width:
                by_width[channels] = (*_options(storage, calibrated, channels), FP32)
            ops.append(OpInfo(op.name, op.op_type, by_width[channels], op.name, has_weight=True))
        elif op.name in known or op.name in reasons:
            excluded.append((op.name, op.op_type, "weight-only quantization is for Linear with a constant weight"))
    names = {op.name for op in ops}
    kept = tuple(recipe for recipe in capability.recipes if set(recipe.fp32_ops) & names)
    return Capability(tuple(ops), (*kept, *_recipes()), tuple(excluded))


def calibrated_inputs(model: ExportedModule, capability: Capability) -> tuple[str, ...]:
    """Nodes that make the inputs of the ops that GPTQ or AWQ may quantize, in graph order."""
    wanted = [op.name for op in capability.ops if any(option.needs_calibration for option in op.options)]
    return tuple(dict.fromkeys(_input(model, name) for name in wanted))


def collect_moments(
    model: ExportedModule, nodes: Iterable[str], batches: Iterable[tuple[int, Feed]]
) -> CalibrationStatistics:
    """``X^T X`` of the values of ``nodes`` over ``(batch number, feed)`` pairs; memory as in ``second_moments``.

    No activation is kept: each is counted when it is computed.
    """
    statistics = CalibrationStatistics()

    def count(name: str, value: torch.Tensor) -> None:
        statistics.add_moments({name: value.detach().float().numpy()})

    runner = Watching(model.graph_module, nodes, count)
    with torch.inference_mode(), intra_op_threads(1):
        for _, feed in batches:
            runner.run(*arguments_of(model, feed))
    return statistics


class WeightOnlyWriter(WeightOnlyQuantizer):
    """Quantizes Linear weights of one model and writes weight-only layers into its graphs."""

    def __init__(self, model: ExportedModule) -> None:
        self._model = model
        weights = {op.weight: model.tensor(op.weight) for op in model.ops if op.weight}
        super().__init__(sum(tensor.nbytes for tensor in weights.values()))

    def write(
        self,
        module: GraphModule,
        weights: Mapping[str, GroupedWeight],
        recipes: Mapping[str, Any],
    ) -> tuple[str, ...]:
        """Replace Linear ops of ``module`` by weight-only ones, in place.

        Args:
            module: A copy of the model's graph; other ops may be quantized already.
            weights: By op name.
            recipes: Of the tuning config.

        Returns:
            Warnings for the user: which layers save no bytes, or run in another precision.

        Raises:
            TrialError: ``native`` storage of a format that has no kernel.
        """
        storage = str(recipes.get(STORAGE, "packed"))
        nodes = {node.name: node for node in module.graph.nodes}
        kinds: dict[Kind, list[str]] = {}
        for position, (name, weight) in enumerate(weights.items()):
            node = nodes[self._model.op[name].node]
            kind = _kind(weight.format, len(weight.integers), storage)
            kinds.setdefault(kind, []).append(name)
            layer = linear_of(weight, self._bias(node), kind)
            target = f"{_PREFIX}{position}"
            module.add_submodule(target, layer)
            with module.graph.inserting_before(node):
                made = module.graph.call_module(target, (node.args[0],))
            made.meta.update(node.meta)
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
            made._rename(node.name)
        if weights:
            module.graph.eliminate_dead_code()
            module.recompile()
            prune(module)
        return tuple(f"{_REMARKS[kind]}: {', '.join(names)}" for kind, names in kinds.items() if kind in _REMARKS)

    def _op_type(self, name: str) -> str | None:
        return self._model.op[name].op_type if name in self._model.op else None

    def _is_quantizable(self, name: str) -> bool:
        return _is_quantizable(self._model, name)

    def _weight_name(self, name: str) -> str:
        return self._model.op[name].weight

    def _input(self, name: str) -> str:
        return _input(self._model, name)

    def _weight(self, name: str) -> NDArray[np.float32]:
        weight: NDArray[np.float32] = self._model.tensor(self._model.op[name].weight).float().numpy().T
        return weight

    def _bias(self, node: Node) -> torch.Tensor | None:
        bias = node.args[2] if len(node.args) > 2 else None
        return self._model.tensor(str(bias.target)) if isinstance(bias, Node) else None


def with_float_layers(module: GraphModule) -> GraphModule:
    """Make packed layers of ``module`` float, in place: the same numbers in less time, for judging."""
    for name, layer in list(module.named_children()):
        if isinstance(layer, PackedLinear):
            setattr(module, name, layer.as_float())
    return module


def _is_quantizable(model: ExportedModule, name: str) -> bool:
    op = model.op[name]
    if op.op_type != "Linear" or not op.weight:
        return False
    weight, node = model.tensor(op.weight), model.nodes[op.node]
    bias = node.args[2] if len(node.args) > 2 else None
    constant_bias = bias is None or (isinstance(bias, Node) and bias.op == "get_attr")
    return weight.dtype == torch.float32 and weight.numel() > 0 and constant_bias


def _input(model: ExportedModule, name: str) -> str:
    source = model.nodes[model.op[name].node].args[0]
    assert isinstance(source, Node)  # the schema of aten.linear
    return str(source.name)


def _kind(form: WeightFormat, channels: int, storage: str) -> Kind:
    """How a weight is stored.

    Raises:
        TrialError: It is to be stored for a kernel, and none holds it.
    """
    if storage == "native":
        found = kernel_of(form, channels)
        if found is None:
            raise TrialError(
                f"no integer kernel holds {form.bits} bits, {form.scheme}, groups of {form.group(channels)} of "
                f"{channels} input channels; recipe {STORAGE} packed or dequantized stores them"
            )
        return found
    return "dequantized" if storage == "dequantized" else "packed"


def _options(storage: str, calibrated: bool, channels: int) -> Iterator[OpConfig]:
    for tensor in tensor_options(_WIDTHS, calibrated):
        form = WeightFormat(tensor.bits, tensor.group_size, "sym" if tensor.scheme == "sym" else "asym")
        if storage != "native" or kernel_of(form, channels) is not None:
            yield OpConfig("weight_only", None, tensor)


def _recipes() -> Iterator[Recipe]:
    yield from settings_recipes()
    yield Recipe(STORAGE, STORAGES[0], STORAGES[:1])


__all__ = [
    "STORAGES",
    "WEIGHT_ONLY_RECIPES",
    "WeightOnlyWriter",
    "calibrated_inputs",
    "collect_moments",
    "weight_only_capability",
    "with_float_layers",
]
