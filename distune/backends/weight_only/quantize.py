"""One door to the weight-only algorithms, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from distune.backends.second_moments import SecondMoments
from distune.backends.weight_only.awq import AwqSettings, awq
from distune.backends.weight_only.gptq import GptqSettings, gptq
from distune.backends.weight_only.grouped import Float, GroupedWeight, WeightFormat, quantized
from distune.backends.weight_only.hqq import hqq
from distune.backends.weight_only.range_search import searched_parameters
from distune.backends.weight_only.rtn import rtn
from distune.errors import TrialError
from distune.space.op_config import CALIBRATED_ALGORITHMS, TensorConfig

ALGORITHMS = ("RTN", "HQQ", "GPTQ", "AWQ")
"""Every algorithm; the last two need calibration."""


@dataclass(frozen=True)
class RtnSettings:
    """Settings of RTN (recipe ``rtn_args``).

    Attributes:
        enable_mse_search: Search each group's range for the smallest squared error of the weight.
    """

    enable_mse_search: bool = False


@dataclass(frozen=True)
class Settings:
    """Settings of all algorithms."""

    rtn: RtnSettings = field(default_factory=RtnSettings)
    gptq: GptqSettings = field(default_factory=GptqSettings)
    awq: AwqSettings = field(default_factory=AwqSettings)


SETTINGS_RECIPES: Mapping[str, type[RtnSettings | GptqSettings | AwqSettings]] = {
    "rtn_args": RtnSettings,
    "gptq_args": GptqSettings,
    "awq_args": AwqSettings,
}
"""Recipes that hold the settings of one algorithm."""

_T = TypeVar("_T")


def settings(recipes: Mapping[str, Any]) -> Settings:
    """The settings that the recipes ``rtn_args``, ``gptq_args`` and ``awq_args`` give.

    Raises:
        TrialError: An unknown setting, or a value of another type.
    """
    return Settings(
        _from_recipe("rtn_args", RtnSettings, recipes),
        _from_recipe("gptq_args", GptqSettings, recipes),
        _from_recipe("awq_args", AwqSettings, recipes),
    )


def quantize_weight(
    weight: Float, config: TensorConfig, moments: SecondMoments | None = None, given: Settings = Settings()
) -> GroupedWeight:
    """Quantize ``weight`` [K, N] as a weight-only tensor config says.

    Args:
        moments: Of the inputs that meet the weight; needed for GPTQ and AWQ.

    Raises:
        TrialError: Unknown algorithm or format, or moments are missing or do not fit.
    """
    form = WeightFormat(config.bits, config.group_size, "sym" if config.scheme == "sym" else "asym")
    if config.algorithm == "RTN":
        if given.rtn.enable_mse_search:
            return quantized(weight, *searched_parameters(weight, np.ones(len(weight)), form), form)
        return rtn(weight, form)
    if config.algorithm == "HQQ":
        return hqq(weight, form)
    if config.algorithm not in CALIBRATED_ALGORITHMS:
        raise TrialError(f"unknown weight-only algorithm {config.algorithm!r}; known: {', '.join(ALGORITHMS)}")
    if moments is None or not moments.rows:
        raise TrialError(f"{config.algorithm} needs calibration data, and nothing was calibrated")
    if moments.channels != len(weight):
        raise TrialError(f"a weight of {len(weight)} input channels does not fit inputs of {moments.channels} channels")
    if config.algorithm == "GPTQ":
        return gptq(weight, moments.moments(), form, given.gptq)
    return awq(weight, moments.moments(), moments.magnitude(), form, given.awq)


def _from_recipe(name: str, kind: type[_T], recipes: Mapping[str, Any]) -> _T:
    arguments = recipes.get(name) or {}
    known = {item.name: getattr(kind(), item.name) for item in fields(kind)}  # type: ignore[arg-type]
    for key, value in arguments.items():
        if key not in known:
            raise TrialError(f"recipe {name} has no setting {key!r}; it has: {', '.join(known)}")
        if isinstance(known[key], bool) != isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TrialError(f"recipe {name}: {key} must be of type {type(known[key]).__name__}, not {value!r}")
    return kind(**arguments)
