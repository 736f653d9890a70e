"""Stages of approach ``weight_only``: the five presets, then bits and algorithm layer by layer.

The presets are those of the ancestor's documents and come before everything else. Unlike there, layers are tuned one by
one afterwards: those whose rounding shows most in the model's output get the algorithm that suits them and more bits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distune.evaluation.criterion import best_first
from distune.space.op_config import OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.fallback import score_order, sensitivity_probe
from distune.strategies.stage import Candidate, ProbeResult, Stage

_PROBED_BATCHES = 2
_ALGORITHMS = ("RTN", "HQQ", "GPTQ", "AWQ")
_MATMULS = ("MatMul", "Linear")


@dataclass(frozen=True)
class Preset:
    """One choice for every layer: asymmetric, 4 bits.

    Attributes:
        disable_last_matmul: The last MatMul (a language model's head) stays in fp32.
    """

    name: str
    algorithm: str
    group_size: int
    disable_last_matmul: bool = False
    bits: int = 4
    scheme: str = "asym"


PRESETS = (
    Preset("RTN_G32ASYM", "RTN", 32),
    Preset("GPTQ_G32ASYM", "GPTQ", 32),
    Preset("GPTQ_G32ASYM_DISABLE_LAST_MATMUL", "GPTQ", 32, disable_last_matmul=True),
    Preset("GPTQ_G128ASYM", "GPTQ", 128),
    Preset("AWQ_G32ASYM", "AWQ", 32),
)
"""In the order in which they are tried."""


def is_weight_only(space: TuningSpace) -> bool:
    """Some op can be quantized weight-only."""
    return any(option.mode == "weight_only" for op in space.ops for option in op.options)


def preset_stage(space: TuningSpace, sampling_size: int) -> Stage:
    """The presets that the space allows; ops whose options leave no choice keep what they have."""
    found = {preset.name: _apply_preset(space, preset, sampling_size) for preset in PRESETS}
    candidates = [Candidate(config, name) for name, config in found.items() if config is not None]
    return Stage("weight-only presets", candidates)


def layer_wise(
    space: TuningSpace, base: TuningConfig, limit: int
) -> Generator[Any, Any, tuple[Stage | None, Stage | None]]:
    """Two stages from ``base``: each layer with its own algorithm, and growing numbers of layers with more bits.

    What the layers need is found by probes, which cost no trial.

    Args:
        limit: Candidates of the second stage at most.

    Returns:
        The stages; ``None`` where the space leaves nothing to choose, or the run is over.
    """
    groups = space.quantized_groups(base)
    scores: dict[str, Mapping[str, float]] = {}
    for algorithm in _ALGORITHMS:
        config = _with_algorithm(space, base, groups, algorithm)
        if config is None:
            continue
        probe: ProbeResult = yield sensitivity_probe(space, config, groups, "fp32", _PROBED_BATCHES)
        if probe.finished:
            return None, None
        scores[algorithm] = probe.scores
    if not scores:
        return None, None
    mixed = _mixed(space, base, groups, scores)
    first = Stage("weight-only algorithm by layer", [Candidate(mixed, "best algorithm by layer")])
    least = {group: min((found.get(group, 0.0) for found in scores.values()), key=_error) for group in groups}
    order = [group for group in score_order(least, groups) if _more_bits(space, mixed, group) is not None]
    lengths = sorted({round(len(order) * (step + 1) / (limit + 1)) for step in range(limit)} - {0}) if limit else []
    candidates = [
        Candidate(_with_more_bits(space, mixed, order[:length]), f"more bits for {length} of {len(groups)} layers")
        for length in lengths
    ]
    second = Stage("weight-only bits by layer", candidates) if candidates else None
    return (first if mixed.hash != base.hash else None), second


def _apply_preset(space: TuningSpace, preset: Preset, sampling_size: int) -> TuningConfig | None:
    changes: dict[str, OpConfig] = {}
    for op in space.ops:
        fitting = (option for option in op.options if _is_of(option, preset))
        if (option := next(fitting, None)) is not None:
            changes[op.name] = option
    if not changes:
        return None
    config = space.effective(replace(space.default().with_ops(changes), sampling_size=sampling_size))
    if preset.disable_last_matmul:
        last = [group for group in space.groups if space.group_type(group) in _MATMULS]
        if not last:
            return None
        config = space.fallback(config, last[-1:])
    return config


def _is_of(option: OpConfig, preset: Preset) -> bool:
    weight = option.weight
    if option.mode != "weight_only" or weight is None:
        return False
    return (weight.algorithm, weight.group_size, weight.bits, weight.scheme) == (
        preset.algorithm,
        preset.group_size,
        preset.bits,
        preset.scheme,
    )


def _with_algorithm(
    space: TuningSpace, base: TuningConfig, groups: tuple[str, ...], algorithm: str
) -> TuningConfig | None:
    """``base`` with ``algorithm`` in every layer that has it; ``None`` where none has."""
    changes = {group: option for group in groups if (option := _algorithm_option(space, base, group, algorithm))}
    if not changes:
        return None
    config = base
    for group, option in changes.items():
        config = space.set_group(config, group, option)
    return space.effective(config)


def _algorithm_option(space: TuningSpace, base: TuningConfig, group: str, algorithm: str) -> OpConfig | None:
    """The option with ``algorithm`` that is otherwise like the one in ``base``; HQQ is asymmetric only."""
    own = base.by_name[space.groups[group][0]].weight
    if own is None:
        return None
    like = [
        option
        for option in space.group_options(group)
        if option.weight is not None
        and (option.weight.algorithm, option.weight.bits, option.weight.group_size)
        == (algorithm, own.bits, own.group_size)
    ]
    return next(
        (option for option in like if option.weight and option.weight.scheme == own.scheme), next(iter(like), None)
    )


def _mixed(
    space: TuningSpace, base: TuningConfig, groups: tuple[str, ...], scores: Mapping[str, Mapping[str, float]]
) -> TuningConfig:
    """Each layer with the algorithm of the smallest output error, the simpler one among equals."""
    config = base
    for group in groups:
        ranked = sorted(scores, key=lambda algorithm: _error(scores[algorithm].get(group)))
        option = next((o for name in ranked if (o := _algorithm_option(space, base, group, name))), None)
        if option is not None:
            config = space.set_group(config, group, option)
    return space.effective(config)


def _error(value: float | None) -> tuple[bool, float]:
    return best_first(value, higher_is_better=False)


def _more_bits(space: TuningSpace, config: TuningConfig, group: str) -> OpConfig | None:
    """The option with the next larger width that is otherwise nearest to the one in ``config``."""
    own = config.by_name[space.groups[group][0]].weight
    if own is None:
        return None
    wider = [
        option for option in space.group_options(group) if option.weight is not None and option.weight.bits > own.bits
    ]

    def distance(option: OpConfig) -> tuple[int, int]:
        weight = option.weight
        assert weight is not None  # those without were left out
        unlike = sum(
            getattr(weight, name) != getattr(own, name) for name in ("algorithm", "scheme", "group_size", "granularity")
        )
        return weight.bits, unlike

    return min(wider, key=distance, default=None)


def _with_more_bits(space: TuningSpace, config: TuningConfig, groups: list[str]) -> TuningConfig:
    for group in groups:
        option = _more_bits(space, config, group)
        if option is not None:
            config = space.set_group(config, group, option)
    return space.effective(config)
