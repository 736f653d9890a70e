"""The exported graph under recipes that rewrite it before calibration, and the recipes that a module can use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from distune.backends.pytorch.blocks import find_blocks
from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.quantizer import WeightScales
from distune.backends.pytorch.recipes.equalization import equalize, pairs
from distune.backends.pytorch.recipes.layers import constant, layers
from distune.backends.pytorch.recipes.smooth_quant import smooth, smoothable
from distune.backends.recipes.catalogue import shared_recipes
from distune.backends.recipes.correction import RoundingCache
from distune.backends.recipes.variants import Rewriting, restored_rewriting, rewriting
from distune.backends.statistics import CalibrationStatistics
from distune.space.capability import Capability, Recipe
from distune.space.tuning_space import Variant


@dataclass(frozen=True)
class ModuleVariant:
    """One graph and what is remembered of quantizing it.

    Attributes:
        model: The graph.
        scales: Of its weights.
        rounding: Integers that ``adaround`` chose.
        saved: What makes the graph again without data.
    """

    model: ExportedModule
    scales: WeightScales = field(default_factory=WeightScales)
    rounding: RoundingCache = field(default_factory=dict)
    saved: Mapping[str, Any] = field(default_factory=dict)


def module_recipes(model: ExportedModule, capability: Capability) -> Iterator[Recipe]:
    """What can be done to a module whose ops are quantized, apart from keeping some of them in fp32."""
    names = {op.name for op in capability.ops}
    quantizable = [layer for layer in layers(model) if layer.name in names]
    yield from shared_recipes(smoothable(model), pairs(model), quantizable)
    # Calibration has the outputs of one layer at a time in memory here, whatever it says.
    yield Recipe("layer_wise_quant", False, (False,), variant=True, modes=("static",))


def rewritten(model: ExportedModule, variant: Variant, statistics: CalibrationStatistics) -> ModuleVariant:
    """The graph of a variant.

    Args:
        statistics: Of the plain graph.
    """
    blocks = partial(find_blocks, model, {op.name: op.name for op in model.ops})
    values = partial(constant, model)
    return _rewritten(model, rewriting(variant, statistics, smoothable(model), pairs(model), values, blocks))


def restored_variant(model: ExportedModule, variant: Variant, saved: Mapping[str, Any]) -> ModuleVariant:
    """The graph of a variant from ``ModuleVariant.saved``, without data."""
    return _rewritten(model, restored_rewriting(variant, saved))


def _rewritten(model: ExportedModule, how: Rewriting) -> ModuleVariant:
    if how.equalize:
        model = equalize(model, how.channels, only_convs=bool(how.factors))
    if how.smooth:
        model = smooth(model, how.factors, how.folding)
    return ModuleVariant(model, saved=how.saved)


__all__ = ["ModuleVariant", "module_recipes", "restored_variant", "rewritten"]
