"""The tuning space: capability narrowed by the user's constraints, with recipes.

Rules are applied from wide to narrow (``model_wise`` < ``optype_wise`` < ``op_wise``); a narrower rule replaces what a
wider one said about the same field of the same tensor role. A value that the capability of an op lacks is dropped
with a warning; where nothing is left, or a pattern matches no op, it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from distune.config.job import Approach, Constraint
from distune.config.parameters import ParameterSpec, defaults
from distune.errors import SpaceError
from distune.space.capability import Capability, OpInfo, Recipe
from distune.space.op_config import FP32, PRECISION_MODES, Mode, OpConfig, TuningConfig
from distune.space.recipes import ops_kept_in_fp32, resolve_recipes

Variant = tuple[tuple[str, Any], ...]
"""Recipes that change what is calibrated, sorted by name."""

APPROACH_MODES: Mapping[Approach, tuple[Mode, ...]] = {
    "static": ("static",),
    "dynamic": ("dynamic",),
    "auto": ("static", "dynamic"),
    "weight_only": ("weight_only",),
    "qat": ("static",),
}
"""Quantized modes that each approach allows, the preferred one first."""


@dataclass(frozen=True)
class TuningSpace:
    """What may be chosen for every op and recipe.

    Attributes:
        ops: The ops in graph order; ``options`` of each are those that the constraints leave, quantized ones first.
        recipes: Recipes that may be tuned, those that the user fixed left out.
        fixed_recipes: Values that the user fixed, where they differ from the default.
        sampling_sizes: Calibration sampling sizes, the first one tried first.
        blocks: Detected blocks as tuples of group names.
        excluded: ``(op name, op type, reason)`` of ops that stay in fp32 for good.
        warnings: What was dropped from the user's constraints.
        parameters: Parameters of the user's own; every tuning config has a value of each.
    """

    ops: tuple[OpInfo, ...]
    recipes: tuple[Recipe, ...] = ()
    fixed_recipes: tuple[tuple[str, Any], ...] = ()
    sampling_sizes: tuple[int, ...] = (100,)
    blocks: tuple[tuple[str, ...], ...] = ()
    excluded: tuple[tuple[str, str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    known_recipes: tuple[Recipe, ...] = ()
    parameters: tuple[ParameterSpec, ...] = ()

    @cached_property
    def op(self) -> dict[str, OpInfo]:
        """Ops by name."""
        return {op.name: op for op in self.ops}

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Names of the ops of each group, by group name, in graph order."""
        members: dict[str, list[str]] = {}
        for op in self.ops:
            members.setdefault(op.group, []).append(op.name)
        return {name: tuple(ops) for name, ops in members.items()}

    @property
    def op_types(self) -> tuple[str, ...]:
        """Types of the ops, in order of first appearance."""
        return tuple(dict.fromkeys(op.op_type for op in self.ops))

    def default(self) -> TuningConfig:
        """The first option of every op, the first sampling size, recipes as fixed or at their default."""
        return self.effective(
            TuningConfig(
                tuple((op.name, op.options[0]) for op in self.ops),
                self.fixed_recipes,
                self.sampling_sizes[0],
                defaults(self.parameters),
            )
        )

    def fp32(self) -> TuningConfig:
        """Every op in fp32 (where the user allows it, else in its last option)."""
        return self.effective(
            TuningConfig(
                tuple((op.name, FP32 if FP32 in op.options else op.options[-1]) for op in self.ops),
                self.fixed_recipes,
                self.sampling_sizes[0],
                defaults(self.parameters),
            )
        )

    def effective(self, config: TuningConfig) -> TuningConfig:
        """``config`` without what changes nothing, so that equal models have equal hashes.

        Recipes at their default are dropped, those that keep ops in fp32 are carried out on the op configs and
        dropped, and the sampling size is 0 where no op is calibrated and only there.
        """
        recipes = {recipe.name: recipe for recipe in self.known_recipes}
        kept = [
            (name, value)
            for name, value in config.recipes
            if name in recipes and not recipes[name].is_default(value) and not recipes[name].fp32_ops
        ]
        out = replace(config, recipes=tuple(sorted(kept)))
        if changes := ops_kept_in_fp32(config, recipes):
            out = out.with_ops(changes)
        if out.needs_calibration or self.variant(out):  # the config that it was made from may have needed none
            return out if out.sampling_size else replace(out, sampling_size=self.sampling_sizes[0])
        return replace(out, sampling_size=0) if out.sampling_size else out

    @property
    def leading(self) -> tuple[Recipe, ...]:
        """Recipes to be settled before everything else."""
        return tuple(recipe for recipe in self.recipes if recipe.leads)

    def settled(self, recipe: str, value: Any) -> TuningSpace:
        """This space with one of its recipes fixed."""
        return replace(
            self,
            recipes=tuple(each for each in self.recipes if each.name != recipe),
            fixed_recipes=tuple(sorted({**dict(self.fixed_recipes), recipe: value}.items())),
        )

    def variant(self, config: TuningConfig) -> Variant:
        """The recipes of ``config`` that change what is calibrated; none where nothing is quantized."""
        if not config.quantized_ops:
            return ()
        known = {recipe.name for recipe in self.known_recipes if recipe.variant}
        return tuple((name, value) for name, value in config.recipes if name in known)

    def fallback(self, config: TuningConfig, groups: Iterable[str], precision: Mode = "fp32") -> TuningConfig:
        """``config`` with all ops of ``groups`` in a floating-point precision, as far as each op has it."""
        wanted = OpConfig(precision)
        changes = {
            name: wanted if wanted in self.op[name].options else FP32 for group in groups for name in self.groups[group]
        }
        return self.effective(config.with_ops(changes))

    def set_group(self, config: TuningConfig, group: str, option: OpConfig) -> TuningConfig:
        """``config`` with ``option`` for the first op of ``group`` and the nearest option for those that follow it.

        The others take the option of the same mode and the same activation config where they have it, else their
        first one of that mode, else fp32 (what follows a dynamic op has no dynamic form of its own), else they stay
        as they are.
        """
        return config.with_ops(self.group_changes(group, option))

    def group_changes(self, group: str, option: OpConfig) -> dict[str, OpConfig]:
        """The op configs that ``set_group`` puts in."""
        first, *rest = self.groups[group]
        changes = {first: option}
        for name in rest:
            same_mode = [other for other in self.op[name].options if other.mode == option.mode]
            matching = [other for other in same_mode if other.activation == option.activation]
            if same_mode:
                changes[name] = (matching or same_mode)[0]
            elif FP32 in self.op[name].options:
                changes[name] = FP32
        return changes

    def group_options(self, group: str) -> tuple[OpConfig, ...]:
        """Quantized options of a group: those of its first op."""
        return tuple(option for option in self.op[self.groups[group][0]].options if option.is_quantized)

    def group_type(self, group: str) -> str:
        """Op type of a group: that of its first op."""
        return self.op[self.groups[group][0]].op_type

    def quantized_groups(self, config: TuningConfig, precision: Mode = "fp32") -> tuple[str, ...]:
        """Groups that are quantized in ``config`` and may fall back to ``precision``, in graph order."""
        wanted = OpConfig(precision)
        by_name = config.by_name
        return tuple(
            group
            for group, names in self.groups.items()
            if any(by_name[name].is_quantized for name in names)
            and any(wanted in self.op[name].options for name in names if by_name[name].is_quantized)
        )

    @cached_property
    def precisions(self) -> tuple[Mode, ...]:
        """Floating-point precisions that at least one op has, in fallback order."""
        return tuple(mode for mode in PRECISION_MODES if any(OpConfig(mode) in op.options for op in self.ops))


def build_space(
    capability: Capability,
    constraints: Sequence[Constraint],
    approach: Approach,
    recipes: Mapping[str, Any],
    sampling_sizes: tuple[int, ...],
) -> TuningSpace:
    """Narrow ``capability`` to what the approach and the user's rules allow.

    Raises:
        SpaceError: A pattern matches no op, a rule leaves an op without an option, a recipe is unknown, or nothing is
            left to quantize. All problems are listed.
    """
    modes = APPROACH_MODES[approach]
    problems: list[str] = []
    warnings: list[str] = []
    resolved = resolve_recipes(capability.recipes, recipes, modes, problems)
    by_approach = [_by_approach(op, modes) for op in capability.ops]
    ops = [op for op in by_approach if _quantizable(op)]
    left_out = tuple(
        (op.name, op.op_type, f"has no form for approach {approach!r}") for op in by_approach if not _quantizable(op)
    )
    _check_patterns(constraints, capability, problems)
    narrowed = [_constrain(op, constraints, problems, warnings) for op in ops]
    narrowed = _agree_in_groups(narrowed, warnings)
    if not problems and not any(_quantizable(op) for op in narrowed):
        problems.append(
            "nothing is left to quantize: no op of the model has a quantized option for this approach"
            + (" and the given constraints" if constraints else "")
        )
    if problems:
        raise SpaceError("\n".join(dict.fromkeys(problems)))
    return TuningSpace(
        ops=tuple(narrowed),
        recipes=resolved.tuned,
        fixed_recipes=resolved.fixed,
        sampling_sizes=sampling_sizes,
        blocks=capability.blocks,
        excluded=(*capability.excluded, *left_out),
        warnings=tuple(dict.fromkeys(warnings)),
        known_recipes=capability.recipes,
    )


def _by_approach(op: OpInfo, modes: tuple[Mode, ...]) -> OpInfo:
    quantized = [option for mode in modes for option in op.options if option.mode == mode]
    return replace(op, options=(*quantized, *(option for option in op.options if not option.is_quantized)))


def _check_patterns(constraints: Sequence[Constraint], capability: Capability, problems: list[str]) -> None:
    subjects: Mapping[str, Callable[[], list[str]]] = {
        "optype": lambda: [op.op_type for op in capability.ops] + [op_type for _, op_type, _ in capability.excluded],
        "op": lambda: [op.name for op in capability.ops] + [name for name, _, _ in capability.excluded],
    }
    for rule in constraints:
        if rule.scope == "model":
            continue
        names = sorted(set(subjects[rule.scope]()))
        if not any(re.fullmatch(rule.pattern, name) for name in names):
            what = "op type" if rule.scope == "optype" else "op name"
            problems.append(
                f"{_at(rule)}{what} pattern {rule.pattern!r} matches nothing in the model; "
                f"the model has: {_some(names)}"
            )


def _constrain(op: OpInfo, constraints: Sequence[Constraint], problems: list[str], warnings: list[str]) -> OpInfo:
    """Keep the options of ``op`` that the rules allow."""
    allowed: dict[tuple[str, str], tuple[tuple[Any, ...], Constraint]] = {}
    for scope in ("model", "optype", "op"):
        for rule in constraints:
            if rule.scope != scope or not _matches(rule, op):
                continue
            for role, fields in (("weight", rule.weight), ("activation", rule.activation)):
                for name, values in fields.items():
                    allowed[role, name] = (values, rule)
    if not allowed:
        return op
    options = op.options
    for (role, name), (values, rule) in allowed.items():
        wanted = set(values)
        kept = tuple(option for option in options if _allows(option, role, name, wanted))
        available = _available(op.options, role, name)
        missing = sorted(str(value) for value in wanted - available)
        if not available - set(PRECISION_MODES):
            continue  # the op has no such tensor: the rule says nothing about it
        if not wanted & set(PRECISION_MODES) and not any(option.is_quantized for option in kept):
            what = (
                f"{_at(rule)}{role} {name} {_some(sorted(map(str, wanted)))} leaves nothing for {{}}, which has: "
                f"{_some(sorted(map(str, available - set(PRECISION_MODES))))}"
            )
            if rule.scope != "model":
                problems.append(what.format(f"op {op.name!r} ({op.op_type})"))
            elif name == "dtype":
                warnings.append(what.format(f"{op.op_type} ops") + "; they stay in floating point")
                options = kept
            else:
                warnings.append(what.format(f"{op.op_type} ops") + "; the rule was dropped there")
            continue
        if missing:
            warnings.append(
                f"{_at(rule)}{role} {name} {_some(missing)} is not available for {op.op_type} ops and was dropped there"
            )
        options = kept
    return replace(op, options=options)


def _matches(rule: Constraint, op: OpInfo) -> bool:
    if rule.scope == "model":
        return True
    return re.fullmatch(rule.pattern, op.op_type if rule.scope == "optype" else op.name) is not None


def _allows(option: OpConfig, role: str, name: str, wanted: set[Any]) -> bool:
    """Whether a rule on one field of one role keeps ``option``.

    A floating-point option is kept unless the rule is about ``dtype`` and does not name that precision.
    """
    tensor = option.activation if role == "activation" else option.weight
    if not option.is_quantized:
        return name != "dtype" or option.mode in wanted or not wanted & set(PRECISION_MODES)
    if tensor is None:
        return True
    return getattr(tensor, name) in wanted


def _available(options: Sequence[OpConfig], role: str, name: str) -> set[Any]:
    out: set[Any] = set()
    for option in options:
        tensor = option.activation if role == "activation" else option.weight
        if tensor is not None:
            out.add(getattr(tensor, name))
        elif not option.is_quantized and name == "dtype":
            out.add(option.mode)
    return out


def _quantizable(op: OpInfo) -> bool:
    return any(option.is_quantized for option in op.options)


def _agree_in_groups(ops: list[OpInfo], warnings: list[str]) -> list[OpInfo]:
    """Ops of one group fall back together; where a rule leaves one of them no quantized option, the group is split."""
    quantizable = {op.name: _quantizable(op) for op in ops}
    by_group: dict[str, list[OpInfo]] = {}
    for op in ops:
        by_group.setdefault(op.group, []).append(op)
    split: set[str] = set()
    for group, members in by_group.items():
        kinds = {quantizable[member.name] for member in members}
        if len(kinds) > 1:
            split.add(group)
            warnings.append(f"the given constraints split the group of op {group!r}, whose ops usually change together")
    return [replace(op, group=op.name) if op.group in split else op for op in ops]


def _at(rule: Constraint) -> str:
    return f"{rule.where}: " if rule.where else ""


def _some(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, … ({len(names)} in all)"
