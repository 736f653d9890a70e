"""Weight-only quantization of Linear: what is offered, what is calibrated, and how it is written into a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
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
from distune.backends.pytorch.runnable import arguments_of, intra_op_threads
from distune.backends.second_moments import SecondMoments
from distune.backends.statistics import CalibrationStatistics
from distune.backends.weight_only.grouped import BITS, GroupedWeight, WeightFormat
from distune.backends.weight_only.kept import KeptWeights
from distune.backends.weight_only.quantize import SETTINGS_RECIPES, Settings, quantize_weight, settings
from distune.errors import ModelError, TrialError
from distune.space.capability import Capability, OpInfo, Recipe
from distune.space.op_config import FP32, OpConfig, TensorConfig

GROUP_SIZES = (32, 16, 64, 128, 256, 512, 1024, -1)
"""Group sizes that are offered, the default first."""

STORAGE = "weight_only_storage"
"""Recipe: how weights are stored."""

STORAGES = ("packed", "native", "dequantized")
"""``packed``: in their own width, made float at every call. ``native``: for ATen's integer kernels, which round the
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
    _check(recipes)
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


class WeightOnlyWriter:
    """Writes weight-only layers into graphs of one model and remembers the weights that it quantized.

    One layer is quantized at a time; what is remembered takes no more memory than the fp32 model (or 64 MiB).
    """

    def __init__(self, model: ExportedModule) -> None:
        self._model = model
        weights = {op.weight: model.tensor(op.weight) for op in model.ops if op.weight}
        self._kept = KeptWeights(sum(tensor.nbytes for tensor in weights.values()))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def quantized(
        self,
        ops: Mapping[str, OpConfig],
        recipes: Mapping[str, Any],
        moments: Callable[[str], SecondMoments | None],
        sampling_size: int,
    ) -> dict[str, GroupedWeight]:
        """The quantized weights of ``ops``, by op name.

        Args:
            ops: Weight-only configs by op name.
            moments: Gives those of a node; asked for GPTQ and AWQ only.
            sampling_size: Identity of the calibration data behind ``moments``.

        Raises:
            TrialError: A config cannot be applied to its op.
        """
        given = settings(recipes)
        out = {}
        for name, config in ops.items():
            if name not in self._model.op:
                raise TrialError(f"the model has no op {name!r}")
            if config.weight is None or not _is_quantizable(self._model, name):
                op_type = self._model.op[name].op_type
                raise TrialError(f"op {name!r} ({op_type}) has no weight for weight-only quantization")
            source = _input(self._model, name) if config.needs_calibration else ""
            key = (self._model.op[name].weight, config.weight, given, source, sampling_size if source else 0)
            try:
                out[name] = self._kept.get(key, partial(self._make, name, config.weight, source, moments, given))
            except TrialError as error:
                raise TrialError(f"op {name!r}: {error}") from error
        return out

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

    def _make(
        self,
        name: str,
        tensor: TensorConfig,
        source: str,
        moments: Callable[[str], SecondMoments | None],
        given: Settings,
    ) -> GroupedWeight:
        return quantize_weight(self._weight(name), tensor, moments(source) if source else None, given)

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
    algorithms = ("RTN", "GPTQ", "AWQ", "HQQ") if calibrated else ("RTN", "HQQ")
    for bits, algorithm, scheme, group_size in product(_WIDTHS, algorithms, ("sym", "asym"), GROUP_SIZES):
        if algorithm == "HQQ" and scheme == "sym":
            continue
        form = WeightFormat(bits, group_size, "sym" if scheme == "sym" else "asym")
        if storage == "native" and kernel_of(form, channels) is None:
            continue
        yield OpConfig("weight_only", None, TensorConfig("int", scheme, "per_channel", algorithm, bits, group_size))


def _recipes() -> Iterator[Recipe]:
    for name, kind in SETTINGS_RECIPES.items():
        algorithm = name.removesuffix("_args").upper()
        known = ", ".join(kind.__dataclass_fields__)
        yield Recipe(name, {}, ({},), f"Settings of {algorithm}: {known}.")
    yield Recipe(STORAGE, "packed", ("packed",), "How weights are stored: packed, native or dequantized.")


def _check(recipes: Mapping[str, Any]) -> None:
    storage = recipes.get(STORAGE, "packed")
    if storage not in STORAGES:
        raise ModelError(f"recipe {STORAGE} is one of {', '.join(STORAGES)}, not {storage!r}")
    try:
        settings(recipes)
    except TrialError as error:
        raise ModelError(str(error)) from error


__all__ = [
    "GROUP_SIZES",
    "STORAGE",
    "STORAGES",
    "WEIGHT_ONLY_RECIPES",
    "WeightOnlyWriter",
    "calibrated_inputs",
    "collect_moments",
    "weight_only_capability",
    "with_float_layers",
]
