"""The whole configuration file: the 1.x YAML plus the keys of our own.

Keys that 1.x did not have:

===============================  ====================================================================================
key                              meaning
===============================  ====================================================================================
``model.path``                   The fp32 model file (1.x handed it over in Python); PyTorch: ``file.py:builder``.
``model.weights``                PyTorch: file of the weights; ``trust_pickle: true`` lets pickle read it. Beside it
                                 ``example_inputs``, with which the module is exported (a batch of the data by default).
``model.partition``              PyTorch: ``auto`` quantizes the largest submodules that ``torch.export`` can read where
                                 it refuses the whole, and leaves the rest eager; ``exclude`` names submodules (regular
                                 expressions of their paths) that stay eager in any case.
``quantization.quant_level``     ``auto``, ``0``/``O0`` or ``1``/``O1`` (as in the 2.x Python classes); 1 by default.
``quantization.recipes.*``       The recipes of 2.x beside those of 1.x.
``*.weight.bits``                Width of weight-only weights; ``group_size``: input channels that share a scale.
``tuning.strategy``              May be the name alone; ``strategy_kwargs`` holds a strategy's settings, ``module``
                                 the module or file of a strategy of one's own.
``tuning.isolation``             ``process`` (default) runs trials in a child process, ``none`` in the rank itself.
``tuning.limits``                ``deadline`` (seconds) and ``memory`` (MiB) of one trial: beyond them its process is
                                 ended and the trial has failed. By default 50 times what scoring fp32 took (300 s at
                                 least), and the rank's share of its node's memory (cgroup and Slurm limits count).
``tuning.early_verdict``         ``false`` scores every trial on all samples; ``true`` (default) ends it as soon as the
                                 samples left cannot change its verdict: the decisions are the same.
``tuning.ranking``               ``full`` (default) ranks the ops on all samples, ``decisive`` on the at most 20% of
                                 them whose margins are smallest in the config that the trials of a stage differ from;
                                 what is accepted is judged on all either way.
``tuning.shared_prefix``         MiB (512) that a node may keep of what the trials of a stage that changes one op at
                                 a time compute alike: each then runs from the last cut before its op. 0 turns it off;
                                 the decisions are the same.
``tuning.search``                ``section`` (default) finds the shortest prefix of accumulated fallback by sections of
                                 ``search_width`` (3) prefixes a round, ``linear`` one by one.
``tuning.refine_trials``         Trials, beside ``max_trials``, that try to give ops of the accepted model back to
                                 integers; 8 by default, 0 with an ``eval_func`` or ``qat``. 0 turns it off.
``tuning.latency``               ``batch_size``, ``cores_per_instance``, ``warmup`` and ``iteration`` in one place,
                                 instead of ``evaluation.performance``.
``evaluation.accuracy.eval_func``  ``module:name`` or ``file.py:name``: gets a callable model, returns a number.
``tuning.parameters``            Parameters of one's own in SigOpt's form (``name``, ``type``, ``bounds`` or ``grid`` or
                                 ``categorical_values``, ``transformation: log``, ``default``): strategies random,
                                 tpe, bayesian, exhaustive and sigopt choose them, ``eval_func`` gets them by keyword.
``tuning.metrics``               ``name``, ``objective`` maximize or minimize, ``strategy`` optimize, constraint (with
                                 ``threshold``) or store; ``eval_func`` returns them by name, and ``latency``,
                                 ``size`` and ``footprint`` are measured. Optimized ones use up the budget.
``tuning.budget``                Another name of ``tuning.exit_policy.max_trials``.
user components                  ``module:name`` or ``file.py:name`` wherever a dataset, transform, filter or metric
                                 is named; transforms may be a list.
===============================  ====================================================================================

A field with ``no_effect`` in its extra is accepted because files of 1.x carry it, and warned about.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Context, Fault, FaultError, Section
from distune.config.imports import split_reference
from distune.config.paths import PathError
from distune.config.schema_evaluation import Evaluation
from distune.config.schema_quantization import Quantization
from distune.config.schema_tuning import Tuning
from distune.config.values import Device, Flag, Names, Number, Text, checked, checked_in_context, reference, resolved
from distune.config.vocabulary import APPROACHES, DYNAMIC_FRAMEWORK, FOREIGN_FRAMEWORKS, FRAMEWORKS, QUANT_LEVELS


def _framework(value: Any) -> str:
    if not isinstance(value, str):
        raise FaultError.of(f"{describe(value)} is no framework; known: {', '.join(FRAMEWORKS)}")
    if value in FOREIGN_FRAMEWORKS:
        raise FaultError.of(
            f"distune does not run {value} models; export the model to ONNX ({FOREIGN_FRAMEWORKS[value]}) and write "
            "'framework: onnxruntime' with 'path: model.onnx'"
        )
    if value not in FRAMEWORKS and value != "NA":
        raise FaultError.of(f"{describe(value)} is no framework{did_you_mean(value, FRAMEWORKS)}")
    return value


def _model_path(value: Any, context: Context) -> str:
    if isinstance(value, str) and split_reference(_expanded(value, context))[1]:
        return reference(value, context, attribute=True)
    path = resolved(value, context, must_exist=True)
    if context.complete and os.path.isdir(path):
        raise FaultError.of(f"{path} is a folder; name the model file in it{_models_in(path)}")
    return path


def _models_in(folder: str) -> str:
    found = sorted(name for name in os.listdir(folder) if name.endswith(".onnx"))
    return f", e.g. {found[0]}" if found else ""


def _expanded(path: str, context: Context) -> str:
    """``path`` with its variables, as it is where they cannot be resolved: that is reported with the field."""
    try:
        return context.resolver.expand(path)
    except PathError:
        return path


def _weights(value: Any, context: Context) -> str:
    path = resolved(value, context, must_exist=True)
    if not path.endswith((".pt", ".pth", ".bin", ".safetensors")):
        raise FaultError.of(f"expected a file of weights (.pt, .pth, .bin or .safetensors), got {path}")
    return path


def _example_inputs(value: Any, context: Context) -> Any:
    if isinstance(value, str):
        return reference(value, context, attribute=True)
    if not isinstance(value, dict) or not value:
        raise FaultError.of(f"expected file.py:name, or shape and dtype by input name, got {describe(value)}")
    for name, described in value.items():
        if not isinstance(described, dict) or "shape" not in described or set(described) - {"shape", "dtype"}:
            raise FaultError.of(f"input {name}: expected 'shape' and 'dtype', got {describe(described)}")
    return value


class Model(Section):
    """The fp32 model."""

    framework: Annotated[str, checked(_framework)] = Field(
        "NA", description="The framework that runs it; told from the ending of 'path' where it is not given."
    )
    path: Annotated[str, checked_in_context(_model_path)] = Field(
        "", description="The model file; for PyTorch also module:builder or file.py:builder."
    )
    name: Text = Field("", description="What the model is called.")
    inputs: Names = Field((), description="Names of the inputs; the model's own by default.")
    outputs: Names = Field((), description="Names of the outputs; the model's own by default.")
    weights: Annotated[str, checked_in_context(_weights)] = Field(
        "", description="PyTorch: file of the weights (.pt, .pth, .safetensors) that the builder's module gets."
    )
    example_inputs: Annotated[Any, checked_in_context(_example_inputs)] = Field(
        None,
        description="PyTorch: what the module is exported with: file.py:name of inputs or of a function that gives "
        "them, or '{input: {shape: [2, 3, 32, 32], dtype: float32}}'; a batch of the data by default.",
    )
    trust_pickle: Flag = Field(False, description="PyTorch: pickle, which runs code in a file, may read the weights.")
    partition: Literal["none", "auto"] = Field(
        "none",
        description="PyTorch: auto quantizes the largest submodules that torch.export can read where it refuses the "
        "whole module, and leaves the rest eager.",
    )
    exclude: Names = Field(
        (), description="PyTorch: paths of submodules that stay eager, as regular expressions; the rest is taken apart."
    )

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        path, told = data.get("path"), data.get("framework", "NA") != "NA"
        if path is None:
            yield Fault("'path' is missing: the model file, relative to this configuration", (), "key")
        elif not told and isinstance(path, str) and not framework_of(_expanded(path, context)):
            message = f"'framework' is missing and cannot be told from {path!r}: one of {', '.join(FRAMEWORKS)}"
            yield Fault(message, (), "key")


def _runs_on_gpu(model: Any, context: Context) -> bool:
    framework, path = _get(model, "framework") or "NA", _get(model, "path")
    told = framework_of(_expanded(path, context)) if framework == "NA" and isinstance(path, str) else framework
    return FRAMEWORKS.get(str(told), ("", ""))[0] == "pytorch"


def framework_of(path: str) -> str:
    """The framework that the model's file name tells, empty where it tells none."""
    if path.endswith(".onnx"):
        return "onnxruntime"
    return "pytorch" if path.endswith(".pt2") or split_reference(path)[1] else ""


def _version(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value < 2:
        raise FaultError.of(f"expected version 1.0 of the configuration, got {describe(value)}")
    return float(value)


class Configuration(Section):
    """A whole file, or a fragment of one (without ``model``)."""

    version: Annotated[Number, checked(_version)] = Field(1.0, description="Version of the configuration's form.")
    model: Model | None = Field(None, description="The fp32 model.")
    device: Device = Field("cpu", description="Where the model runs.")
    quantization: Quantization = Field(
        default_factory=lambda: Quantization.model_construct(), description="How it is quantized."
    )
    tuning: Tuning = Field(default_factory=lambda: Tuning.model_construct(), description="What is looked for.")
    evaluation: Evaluation = Field(
        default_factory=lambda: Evaluation.model_construct(), description="How it is scored and timed."
    )

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        reason = "distune tunes post-training quantization and does not do {}; take this section out"
        return {
            "graph_optimization": reason.format("graph optimization on its own"),
            "mixed_precision": reason.format("mixed precision on its own (allow bf16 or fp16 in 'dtype' of a rule)"),
            "pruning": reason.format("pruning"),
            "distillation": reason.format("distillation"),
            "auto_distillation": reason.format("distillation"),
            "nas": reason.format("architecture search"),
            "model_conversion": reason.format("model conversion"),
            "train": "training while quantizing is 'quantization.train' with approach quant_aware_training; move it",
        }

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        approach = _get(data, "quantization", "approach")
        framework = _get(data, "model", "framework")
        if framework == DYNAMIC_FRAMEWORK and approach is not None and APPROACHES.get(str(approach)) != "dynamic":
            message = f"{DYNAMIC_FRAMEWORK} means dynamic quantization; drop this, or take framework onnxrt_qdq"
            yield Fault(message, ("quantization", "approach"))
        if APPROACHES.get(str(approach)) == "qat" and FRAMEWORKS.get(str(framework), ("pytorch", ""))[0] != "pytorch":
            message = "quantization-aware training needs an nn.Module: framework pytorch with path: file.py:builder"
            yield Fault(message, ("quantization", "approach"))
        if data.get("device") == "gpu" and "model" in data and not _runs_on_gpu(data["model"], context):
            yield Fault("onnxruntime models are quantized for and measured on the CPU: expected cpu", ("device",))
        level = QUANT_LEVELS.get(str(_get(data, "quantization", "quant_level")), 1)
        if level != 1 and _get(data, "tuning", "strategy") is not None:
            name = "auto" if level == "auto" else "conservative"
            strategy = _get(data, "tuning", "strategy")
            if (strategy.get("name", "basic") if isinstance(strategy, dict) else strategy) != name:
                message = f"quant_level {level} decides the strategy itself; drop this, or set quant_level: 1"
                yield Fault(message, ("tuning", "strategy"), "key")
        if _get(data, "tuning", "latency") and _get(data, "evaluation", "performance"):
            message = "'tuning.latency' and 'evaluation.performance' exclude each other; keep one"
            yield Fault(message, ("tuning", "latency"), "key")
        yield from _calibration(data, context, approach, framework)


def _calibration(data: Mapping[str, Any], context: Context, approach: Any, framework: Any) -> Iterator[Fault]:
    static = APPROACHES.get(str(approach or "static")) in ("static", "auto") and framework != DYNAMIC_FRAMEWORK
    if context.complete and static and _get(data, "quantization", "calibration", "dataloader") is None:
        place: tuple[str, ...] = ()
        for key in ("quantization", "calibration"):
            if not isinstance(_get(data, *place, key), dict):
                break
            place = (*place, key)
        yield Fault("static quantization needs data: add 'quantization.calibration.dataloader'", place, "key")


def _get(data: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            return None
        data = data[key]
    return data
