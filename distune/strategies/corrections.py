"""Cheap corrections of a quantized model, tried before anything goes back to floating point.

A correction costs no speed: biases and weights get other values, the kernels stay. So where the default config fails,
a small, fixed number of corrected ones comes first. Recipes that the user gave a value are left at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import StrategyContext
from distune.strategies.stage import Candidate, Stage

_FOR_ALL: tuple[Mapping[str, Any], ...] = ({"fast_bias_correction": True},)
_FOR_CONVOLUTIONS: tuple[Mapping[str, Any], ...] = (
    {"cross_layer_equalization": True, "fast_bias_correction": True},
    {"adaround": True, "fast_bias_correction": True},
)
"""In the order of what they take: equalization calibrates once more, rounding solves a problem for each channel."""


def correction_stage(space: TuningSpace, context: StrategyContext, base: TuningConfig) -> Stage:
    """The corrections of ``base``, with a quarter of the remaining trials at most; without candidates where the model
    or the approach has none, or the user settled them."""
    limit = context.record.remaining // 4
    return Stage("corrections", list(_candidates(space, context, base))[:limit])


def _candidates(space: TuningSpace, context: StrategyContext, base: TuningConfig) -> Iterator[Candidate]:
    known = {recipe.name for recipe in space.known_recipes}
    settled = set() if context.job is None else set(context.job.recipes)
    by_name = base.by_name
    static = [name for name in base.quantized_ops if by_name[name].mode == "static"]
    if not static:
        return
    convolutions = any("conv" in space.op[name].op_type.lower() for name in static)
    seen = {base.hash}
    for recipes in (*_FOR_ALL, *(_FOR_CONVOLUTIONS if convolutions else ())):
        changes = {name: value for name, value in recipes.items() if name in known and name not in settled}
        config = space.effective(base.with_recipes(changes))
        if config.hash not in seen:
            seen.add(config.hash)
            yield Candidate(config, " and ".join(changes))
