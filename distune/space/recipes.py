"""What the user's ``recipes`` mean: values that are fixed, and recipes that are tuned over.

``name: value`` fixes a recipe, ``name: [value, value]`` tunes over the values. SmoothQuant comes in two keys:
``smooth_quant: true`` with ``smooth_quant_args.alpha`` (a number, ``auto``, or a list of alphas, which are judged as a
stage of their own before everything else) becomes one recipe ``smooth_quant`` whose value is the alpha; the other
arguments are kept in a recipe ``smooth_quant_args`` where they differ from the defaults. Values of recipes are plain:
they are hashed, journalled and written to ``tuning_config.yaml``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from distune.errors import SpaceError
from distune.space.capability import Recipe
from distune.space.op_config import FP32, Mode, OpConfig, TuningConfig

DEFAULTS: Mapping[str, Any] = {
    "smooth_quant": False,
    "smooth_quant_args": {},
    "fast_bias_correction": False,
    "weight_correction": False,
    "adaround": False,
    "cross_layer_equalization": False,
    "gemm_to_matmul": False,
    "graph_optimization_level": None,
    "first_conv_or_matmul_quantization": True,
    "last_conv_or_matmul_quantization": True,
    "pre_post_process_quantization": True,
    "add_qdq_pair_to_weight": False,
    "optypes_to_exclude_output_quant": [],
    "dedicated_qdq_pair": False,
    "layer_wise_quant": False,
    "scale_propagation_max_pooling": True,
    "scale_propagation_concat": False,
}
"""Values that change nothing: a recipe that the model or the approach cannot use may be given with them."""

ON_IN_INC = ("gemm_to_matmul", "scale_propagation_max_pooling", "scale_propagation_concat")
"""Recipes that INC has on by default: switched on for a model that has no op of the kind they do nothing."""

SMOOTH_QUANT_ALPHA = 0.5
"""Alpha of ``smooth_quant: true`` alone."""


@dataclass(frozen=True)
class SmoothQuantArgs:
    """``smooth_quant_args`` but for ``alpha``.

    Attributes:
        folding: Fold the division into what comes before where that can be; else it is always a Mul.
        weight_clip: Keep the weights' channel maxima from going below 1e-5.
        default_alpha: Alpha that ``auto`` takes among equals.
        alpha_min, alpha_max, alpha_step: The grid of ``auto``.
        shared_criterion: How ``auto`` joins the losses of layers that share an input: ``mean``, ``min`` or ``max``.
        do_blockwise: ``auto`` chooses one alpha for each transformer block instead of one for each input.
    """

    folding: bool = True
    weight_clip: bool = True
    default_alpha: float = SMOOTH_QUANT_ALPHA
    alpha_min: float = 0.0
    alpha_max: float = 1.0
    alpha_step: float = 0.1
    shared_criterion: str = "mean"
    do_blockwise: bool = False

    @property
    def alphas(self) -> tuple[float, ...]:
        """The grid of ``auto``."""
        steps = math.floor((self.alpha_max - self.alpha_min) / self.alpha_step + 1e-9)
        return tuple(round(self.alpha_min + i * self.alpha_step, 10) for i in range(steps + 1))

    def to_text(self) -> str:
        """What differs from the defaults, as JSON; empty where nothing does."""
        ours, theirs = vars(self), vars(SmoothQuantArgs())
        changed = {key: value for key, value in ours.items() if value != theirs[key]}
        return json.dumps(changed, sort_keys=True) if changed else ""

    @classmethod
    def from_text(cls, text: str) -> SmoothQuantArgs:
        """Inverse of ``to_text``."""
        return cls(**json.loads(text)) if text else cls()


@dataclass(frozen=True)
class ResolvedRecipes:
    """See the module's description.

    Attributes:
        fixed: Values that differ from the defaults, sorted by name.
        tuned: Recipes to tune over; those with ``leading`` in a stage before everything else.
    """

    fixed: tuple[tuple[str, Any], ...]
    tuned: tuple[Recipe, ...]


def resolve_recipes(
    known: Iterable[Recipe], given: Mapping[str, Any], modes: tuple[Mode, ...], problems: list[str]
) -> ResolvedRecipes:
    """Join what the backend knows with what the user wants.

    Args:
        known: The recipes of the model.
        given: The user's ``recipes``.
        modes: Quantized modes of the approach.
        problems: What is wrong is added here.
    """
    usable = {recipe.name: recipe for recipe in known if not recipe.modes or set(recipe.modes) & set(modes)}
    wanted = _joined(given, problems)
    fixed: dict[str, Any] = {}
    tuned = [recipe for recipe in usable.values() if recipe.name not in wanted and len(recipe.choices) > 1]
    for name, value in wanted.items():
        recipe = usable.get(name)
        if recipe is None:
            idle = name in ON_IN_INC and value is True
            if not idle and (name not in DEFAULTS or value != DEFAULTS[name]):
                problems.append(_unusable(name, usable))
        elif isinstance(value, list) and name != "optypes_to_exclude_output_quant":
            tuned.append(_over(recipe, value, fixed))
        else:
            plain = ",".join(value) if isinstance(value, list) else value
            if not recipe.is_default(plain) and plain not in ("", None):
                fixed[name] = plain
    tuned = [recipe for recipe in tuned if not _takes_one(recipe, fixed)]
    return ResolvedRecipes(tuple(sorted(fixed.items())), tuple(tuned))


def ops_kept_in_fp32(config: TuningConfig, recipes: Mapping[str, Recipe]) -> dict[str, OpConfig]:
    """The ops that the recipes of ``config`` turn to fp32, with their new configs; ``recipes`` are the known ones."""
    changes: dict[str, OpConfig] = {}
    for name, value in config.recipes:
        recipe = recipes.get(name)
        if recipe is not None and not recipe.is_default(value):
            changes.update({op: FP32 for op in recipe.fp32_ops if op in config.by_name})
    return changes


def _over(recipe: Recipe, values: list[Any], fixed: dict[str, Any]) -> Recipe:
    """``recipe`` with the user's choices, the default first; where it is not among them the first one is fixed."""
    choices = list({(type(value), value): value for value in values}.values())  # False is no alpha of 0.0
    if any(recipe.is_default(value) for value in choices):
        choices = [recipe.default, *(value for value in choices if not recipe.is_default(value))]
    elif not recipe.leads and choices:
        fixed[recipe.name] = choices[0]
    return replace(recipe, choices=tuple(choices))


def _takes_one(recipe: Recipe, fixed: dict[str, Any]) -> bool:
    """A list of one value fixes it."""
    if len(recipe.choices) > 1:
        return False
    if recipe.choices and not recipe.is_default(recipe.choices[0]):
        fixed[recipe.name] = recipe.choices[0]
    return True


def _joined(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """``given`` with the two keys of SmoothQuant made into alphas and the rest."""
    out = {name: value for name, value in given.items() if name not in ("smooth_quant", "smooth_quant_args")}
    wanted = given.get("smooth_quant", False)
    arguments = dict(given.get("smooth_quant_args") or {})
    alpha = arguments.pop("alpha", SMOOTH_QUANT_ALPHA)
    alphas = list(alpha) if isinstance(alpha, (list, tuple)) else [alpha]
    for value in alphas:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 <= value <= 1) and value != "auto":
            problems.append(f"smooth_quant_args.alpha: expected numbers from 0 to 1 or 'auto', got {value!r}")
            return out
    alphas = [float(value) if value != "auto" else value for value in alphas]
    try:
        text = _smooth_quant_args(arguments).to_text()
    except SpaceError as error:
        problems.append(str(error))
        return out
    if wanted in (False, None):
        return out
    on_and_off = isinstance(wanted, (list, tuple))
    out["smooth_quant"] = [False, *alphas] if on_and_off and False in wanted else alphas
    if len(out["smooth_quant"]) == 1:
        out["smooth_quant"] = out["smooth_quant"][0]
    if text:
        out["smooth_quant_args"] = text
    return out


def _smooth_quant_args(arguments: Mapping[str, Any]) -> SmoothQuantArgs:
    flat = {key: value for key, value in arguments.items() if key != "auto_alpha_args"}
    automatic = arguments.get("auto_alpha_args") or {}
    if not isinstance(automatic, Mapping):
        raise SpaceError(f"smooth_quant_args.auto_alpha_args: expected keys and values, got {automatic!r}")
    automatic = dict(automatic)
    fields = {"folding": bool, "weight_clip": bool, "default_alpha": float}
    grid = {"alpha_min": float, "alpha_max": float, "alpha_step": float, "shared_criterion": str} | {
        "do_blockwise": bool
    }
    values: dict[str, Any] = {}
    for place, found, types in (("", flat, fields), ("auto_alpha_args.", automatic, grid)):
        for key, value in found.items():
            if key not in types:
                near = get_close_matches(key, types, n=1)
                hint = f": did you mean {near[0]!r}?" if near else f"; known: {', '.join(types)}"
                raise SpaceError(f"smooth_quant_args: unknown key {place + key!r}{hint}")
            if types[key] is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, types[key]):
                raise SpaceError(f"smooth_quant_args.{place}{key}: expected a {types[key].__name__}, got {value!r}")
            values[key] = value
    args = SmoothQuantArgs(**values)
    if not (0 <= args.alpha_min <= args.alpha_max <= 1 and args.alpha_step > 0 and 0 <= args.default_alpha <= 1):
        raise SpaceError(
            "smooth_quant_args: alphas lie between 0 and 1, alpha_min below alpha_max, and alpha_step above 0"
        )
    if args.shared_criterion not in ("mean", "min", "max"):
        raise SpaceError(
            f"smooth_quant_args.auto_alpha_args.shared_criterion: mean, min or max, got {args.shared_criterion!r}"
        )
    return args


def _unusable(name: str, usable: Mapping[str, Recipe]) -> str:
    return f"recipe {name!r} cannot be used with this model and approach; usable: {', '.join(sorted(usable)) or 'none'}"
