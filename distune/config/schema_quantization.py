"""The section ``quantization``: approach, calibration, recipes and the rules about what may be tuned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Context, Fault, FaultError, Section
from distune.config.schema_data import NO_EFFECT, BatchSettings, Dataloader
from distune.config.schema_train import Train
from distune.config.values import (
    Algorithms,
    ApproachName,
    Dtypes,
    Granularities,
    Pattern,
    Precisions,
    QuantLevel,
    Schemes,
    checked_in_context,
    whole_numbers,
)
from distune.config.vocabulary import (
    APPROACHES,
    ARGUMENT_RECIPES,
    BOOLEAN_RECIPES,
    GRAPH_LEVELS,
    ON_BY_DEFAULT,
    RECIPES,
)
from distune.config.yaml_nodes import plain


class Calibration(Section):
    """The samples that set the ranges of static quantization."""

    sampling_size: Annotated[tuple[int, ...], whole_numbers("numbers of samples", 1)] = Field(
        (100,), description="Calibration samples; several sizes are tuned over, the first one first."
    )
    iterations: Annotated[tuple[int, ...], whole_numbers("numbers of batches", 1)] | None = Field(
        None, description="Calibration batches, instead of sampling_size."
    )
    dataloader: Dataloader | None = Field(None, description="The calibration data.")

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        if "sampling_size" in data and "iterations" in data:
            yield Fault("'iterations' and 'sampling_size' exclude each other; keep one", ("iterations",), "key")


class ActivationRule(Section):
    """Allowed values for the activations of the ops in question."""

    dtype: Dtypes | None = Field(None, description="Allowed dtypes; fp32, bf16, fp16 allow falling back as well.")
    scheme: Schemes | None = Field(None, description="Allowed schemes.")
    granularity: Granularities | None = Field(None, description="Allowed granularities.")
    algorithm: Algorithms | None = Field(None, description="Allowed ways to find the range.")
    compute_dtype: Dtypes | None = Field(
        None,
        description="1.x: dtype that dynamic quantization computes in.",
        json_schema_extra={NO_EFFECT: "the dtype of dynamic activations is 'dtype'"},
    )


class WeightRule(Section):
    """Allowed values for the weights of the ops in question."""

    dtype: Dtypes | None = Field(None, description="Allowed dtypes; fp32, bf16, fp16 allow falling back as well.")
    scheme: Schemes | None = Field(None, description="Allowed schemes.")
    granularity: Granularities | None = Field(None, description="Allowed granularities.")
    algorithm: Algorithms | None = Field(None, description="Allowed ways to find the range.")
    bits: Annotated[tuple[int, ...], whole_numbers("widths in bits", 1)] | None = Field(
        None, description="Allowed widths of weight-only weights."
    )
    group_size: Annotated[tuple[int, ...], whole_numbers("group sizes", -1)] | None = Field(
        None, description="Input channels that share a scale in weight-only mode; -1 is the whole row."
    )
    bit: Annotated[tuple[int, ...], whole_numbers("widths in bits", 1)] | None = Field(
        None,
        description="1.x: bits of the weight range (7 avoids overflow on CPUs without VNNI).",
        json_schema_extra={NO_EFFECT: "the range is reduced where the CPU needs it; weight-only widths are 'bits'"},
    )


class Rule(Section):
    """What is allowed for weights and activations."""

    weight: WeightRule = Field(default_factory=lambda: WeightRule.model_construct(), description="Rules for weights.")
    activation: ActivationRule = Field(
        default_factory=lambda: ActivationRule.model_construct(), description="Rules for activations."
    )


class OpRule(Rule):
    """The rule of one pattern: it must say something."""

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        if not data:
            yield Fault("this rule says nothing; give 'weight' or 'activation'", (), "key")


def _recipes(value: Any, context: Context) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FaultError.of(f"expected recipes as keys and values, got {describe(value)}")
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, raw in value.items():
        setting = plain(raw)
        fault, idle = _recipe_fault(name, setting, context), _idle_recipe(name, setting, context)
        if fault is not None:
            faults.append(fault)
        elif idle:
            context.notices.append(Fault(f"has no effect: {idle}", ("quantization", "recipes", name), "key"))
        else:
            found[name] = setting.upper() if name == "graph_optimization_level" and setting else setting
    if faults:
        raise FaultError(*faults)
    return found


def _recipe_fault(name: str, value: Any, context: Context) -> Fault | None:
    known = context.known.recipes
    spelled = {*known, *RECIPES}
    if name not in spelled:
        return Fault(f"unknown recipe{did_you_mean(name, spelled)}", (name,), "key")
    if _unavailable(name, context) and value is not (name in ON_BY_DEFAULT):
        available = ", ".join(sorted(known))
        return Fault(f"this recipe of INC is not available in distune; available: {available}", (name,), "key")
    if name in BOOLEAN_RECIPES and not _booleans(value):
        return Fault(f"expected true or false, got {describe(value)}", (name,))
    if name in ARGUMENT_RECIPES and not isinstance(value, dict):
        return Fault(f"expected keys and values, got {describe(value)}", (name,))
    if name == "graph_optimization_level" and value is not None and str(value).upper() not in GRAPH_LEVELS:
        return Fault(f"expected one of {', '.join(GRAPH_LEVELS)}, got {describe(value)}", (name,))
    if name == "optypes_to_exclude_output_quant" and not isinstance(value, list):
        return Fault(f"expected a list of op types, got {describe(value)}", (name,))
    return None


def _booleans(value: Any) -> bool:
    """``true``, ``false``, or a list of them to tune over."""
    values = value if isinstance(value, list) and value else [value]
    return all(isinstance(each, bool) for each in values)


def _unavailable(name: str, context: Context) -> bool:
    known = context.known.recipes
    return context.complete and bool(known) and name not in known


def _idle_recipe(name: str, value: Any, context: Context) -> str:
    """Why a recipe of INC that is accepted does nothing; empty where it does something."""
    if _unavailable(name, context) and value is (name in ON_BY_DEFAULT):
        return f"distune has no such recipe, and {describe(value)} is what it does anyway"
    return ""


class Advance(Section):
    """Advanced settings of 1.x."""

    bias_correction: Literal["weight_empirical"] | None = Field(
        None,
        description="1.x: bias correction of PyTorch weights.",
        json_schema_extra={NO_EFFECT: "the recipe fast_bias_correction takes its place"},
    )


class Quantization(Section):
    """How the model is quantized and what may be tuned."""

    approach: ApproachName = Field("static", description="Static, dynamic, either (auto), weight_only, or in training.")
    quant_level: QuantLevel = Field(1, description="auto, 0 (conservative, from fp32 up) or 1 (tuning.strategy).")
    calibration: Calibration = Field(
        default_factory=lambda: Calibration.model_construct(), description="The calibration samples."
    )
    recipes: Annotated[dict[str, Any], checked_in_context(_recipes)] = Field(
        default_factory=dict,
        description="A value is fixed, a list of values is tuned over. First, last, pre and post processing are "
        "tuned where they are not named.",
    )
    model_wise: Rule = Field(default_factory=lambda: Rule.model_construct(), description="Rules for all ops.")
    optype_wise: dict[Pattern, OpRule] = Field(
        default_factory=dict, description="Rules by op type (a regular expression that matches the whole type)."
    )
    op_wise: dict[Pattern, OpRule] = Field(
        default_factory=dict, description="Rules by op name (a regular expression that matches the whole name)."
    )
    excluded_precisions: Precisions = Field((), description="bf16, fp16: precisions that no op takes or falls back to.")
    advance: Advance | None = Field(None, description="Advanced settings of 1.x.")

    train: Train | None = Field(None, description="How the model is trained (approach quant_aware_training).")

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        aware = APPROACHES.get(str(data.get("approach"))) == "qat"
        if data.get("train") is not None and not aware:
            yield Fault(
                "training belongs to approach: quant_aware_training; drop it or change the approach", ("train",), "key"
            )
        if aware and context.complete and data.get("train") is None:
            yield Fault("quant_aware_training needs the section 'train': optimizer, dataloader and epochs", (), "key")


__all__ = ["NO_EFFECT", "BatchSettings", "Calibration", "Dataloader", "OpRule", "Quantization", "Rule"]
