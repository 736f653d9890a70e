"""Checks the Python classes by the schema of the YAML file, so that both know the same words and say the same things.

A class gives the document that a YAML file would hold (``conf.py``), the document is validated, and what is wrong is
named by the class's own fields: ``TuningCriterion.timeout`` and not ``tuning.exit_policy.timeout``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Context, Fault, FaultError, Place, Section, faults_of
from distune.config.known import KnownNames
from distune.config.paths import PathResolver
from distune.config.schema import Configuration
from distune.config.schema_quantization import NO_EFFECT
from distune.config.values import Flag, Precisions, Text, Whole, checked, one_of
from distune.config.values import Names as NameList
from distune.errors import ConfigError, UsageError

Names = Mapping[Place, str]
"""Which field of which class a place of the document stands for; the longest matching beginning counts."""


def _effect(reason: str) -> dict[str, Any]:
    return {NO_EFFECT: reason}


_BACKENDS_ELSEWHERE = {
    "itex": "TensorFlow",
    "ipex": "the Intel extension of PyTorch",
    "onnxrt_trt_ep": "the TensorRT execution provider",
    "onnxrt_cuda_ep": "the CUDA execution provider",
    "onnxrt_dnnl_ep": "the oneDNN execution provider",
    "onnxrt_dml_ep": "the DirectML execution provider",
}


def _backend(value: Any) -> str:
    if value in _BACKENDS_ELSEWHERE:
        raise FaultError.of(
            f"{value} needs {_BACKENDS_ELSEWHERE[value]}, which distune does not use: it quantizes for and measures "
            "on the CPU; leave it at 'default'"
        )
    if value != "default":
        hint = did_you_mean(str(value), ["default", *_BACKENDS_ELSEWHERE])
        raise FaultError.of(f"{describe(value)} is no backend{hint}")
    return "default"


Backend = Annotated[str, checked(_backend)]
QuantFormat = Annotated[str, checked(one_of("quant_format", {name: name for name in ("default", "QDQ", "QOperator")}))]

_ONNX_KNOWS = "an ONNX model says itself what its inputs are; PyTorch models will need it"
_THREADS = "an instance has the threads of cores_per_instance, and nothing beside it"


class QuantizationExtras(Section):
    """Fields of the classes for quantization that a YAML file has not."""

    backend: Backend = "default"
    domain: Literal["auto", "cv", "object_detection", "nlp", "recommendation_system"] = Field(
        "auto", json_schema_extra=_effect("what is done follows from the model's graph, not from its domain")
    )
    quant_format: QuantFormat = "default"
    reduce_range: Flag | None = Field(
        None, json_schema_extra=_effect("weights take 7 bits where the CPU would overflow, and 8 elsewhere")
    )
    example_inputs: Any = Field(None, json_schema_extra=_effect(_ONNX_KNOWS))
    diagnosis: Flag = False
    ni_workload_name: Text = Field(
        "quantization", json_schema_extra=_effect("it names a workload of Neural Insights, which distune does not feed")
    )
    model_name: str = ""
    inputs: NameList = ()
    outputs: NameList = ()


class MixedPrecisionExtras(Section):
    """Fields of ``MixedPrecisionConfig`` that a YAML file has not."""

    backend: Backend = "default"
    precisions: Precisions = ("bf16",)
    model_name: str = ""
    example_inputs: Any = Field(None, json_schema_extra=_effect(_ONNX_KNOWS))
    excluded_precisions: Precisions = ()
    inputs: NameList = ()
    outputs: NameList = ()


class BenchmarkExtras(Section):
    """Fields of ``BenchmarkConfig``; a YAML file has them for the tuning's own latency only."""

    backend: Backend = "default"
    warmup: Whole = Field(5, ge=0)
    iteration: Whole = Field(-1, ge=-1)
    model_name: str = ""
    cores_per_instance: Whole | None = Field(None, ge=1)
    num_of_instance: Whole = Field(1, ge=1)
    inter_num_of_threads: Whole | None = Field(None, ge=1, json_schema_extra=_effect(_THREADS))
    intra_num_of_threads: Whole | None = Field(None, ge=1)
    diagnosis: Flag = Field(False, json_schema_extra=_effect("a benchmark quantizes nothing"))
    ni_workload_name: Text = Field(
        "profiling", json_schema_extra=_effect("it names a workload of Neural Insights, which distune does not feed")
    )


def checked_document(document: Mapping[str, Any], names: Names, known: KnownNames | None = None) -> Configuration:
    """The configuration that a document of the YAML's form means.

    Args:
        document: Plain values, as read from a file; without ``model``.
        names: How its places are called.
        known: Registered names to check against; nothing of the kind is checked where it is left out.

    Raises:
        ConfigError: Lists every problem by the name of its field.
    """
    context = _context(known)
    try:
        return Configuration.model_validate(dict(document), context=context)
    except ValidationError as error:
        raise _config_error(faults_of(error), names) from None


def checked_extras(kind: type[Section], values: Mapping[str, Any], names: Names) -> Section:
    """``values`` as a section of ``kind``.

    Raises:
        ConfigError: As in ``checked_document``.
    """
    try:
        return kind.model_validate(dict(values), context=_context(None))
    except ValidationError as error:
        raise _config_error(faults_of(error, kind), names) from None


def warn_of(sections: Iterable[BaseModel], names: Names, document: Mapping[str, Any], changed: str = "") -> None:
    """Warn of every field that is set and does nothing.

    Args:
        document: The document as given, for what a validation alone notices (recipes without effect).
        changed: Name of the only field to speak of; all of them where empty.
    """
    context = _context(None)
    if document:
        Configuration.model_validate(dict(document), context=context)
    notices = [(notice.place, notice.message.removeprefix("has no effect: ")) for notice in context.notices]
    for section in sections:
        notices += _without_effect(section, ())
    for place, reason in notices:
        name = named(place, names)
        if name.startswith(changed):
            warnings.warn(f"{name} has no effect: {reason}", UserWarning, stacklevel=5)


def refuse_unknown_fields(cls: type[Any], given: Iterable[str]) -> None:
    """Say which keyword arguments the class does not have.

    Raises:
        UsageError: Lists them, each with the nearest name.
    """
    known = [item.name for item in fields(cls) if item.init]
    wrong = [name for name in given if name not in known]
    if wrong:
        raise UsageError(
            "\n".join(f"{cls.__name__}: unknown field {name!r}{did_you_mean(name, known)}" for name in wrong)
        )


def named(place: Place, names: Names) -> str:
    """``TuningCriterion.strategy_kwargs['x']`` for a place of the document."""
    for length in range(len(place), -1, -1):
        if place[:length] in names:
            rest = "".join(f"[{part!r}]" for part in place[length:])
            return names[place[:length]] + rest
    return ".".join(map(str, place))


def plain(value: Any) -> Any:
    """``value`` as a YAML file would give it: NumPy scalars as numbers, tuples as lists, mappings as dicts."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, int | float) else key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _context(known: KnownNames | None) -> Context:
    return Context(PathResolver(Path.cwd(), os.environ), known or KnownNames())


def _config_error(faults: Iterable[Fault], names: Names) -> ConfigError:
    lines = dict.fromkeys(f"{named(fault.place, names)}: {fault.message}" for fault in faults)
    return ConfigError("\n".join(lines))


def _without_effect(section: BaseModel, place: Place) -> Iterator[tuple[Place, str]]:
    """Fields that are set to something else than the default and do nothing, with the reason."""
    for name, info in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        extra = info.json_schema_extra
        if isinstance(extra, dict) and NO_EFFECT in extra:
            # ``is not``: an array among example inputs cannot be compared with None
            if value is not info.default and not (isinstance(value, str | bool) and value == info.default):
                yield (*place, name), str(extra[NO_EFFECT])
        elif isinstance(value, BaseModel):
            yield from _without_effect(value, (*place, name))
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, BaseModel):
                    yield from _without_effect(item, (*place, name, key))
