"""The Python classes of a configuration, by the names and defaults of INC 2.x.

What they hold is checked when they are made and whenever a field is set, by the schema of the YAML file. What they mean
is put together in ``conf_to_job``; the keys of a document are those of the YAML file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from distune.config.conf_check import (
    BenchmarkExtras,
    MixedPrecisionExtras,
    Names,
    QuantizationExtras,
    checked_document,
    checked_extras,
    plain,
    refuse_unknown_fields,
    warn_of,
)
from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Place, Section
from distune.config.known import KnownNames
from distune.config.schema import Configuration
from distune.config.schema_tuning import OBJECTIVES
from distune.errors import ConfigError

Document = dict[str, Any]


class _Conf(type):
    """Says which field is unknown, and which is near, where Python would only raise a ``TypeError``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        refuse_unknown_fields(cls, kwargs)
        return super().__call__(*args, **kwargs)


class Conf(metaclass=_Conf):
    """Base of the classes: checks when made and when a field is set.

    Attributes:
        places: The place in the document of every field that a YAML file has too.
        extras: The schema of the other fields, ``None`` where there are none.
    """

    places: ClassVar[Mapping[str, Place]] = {}
    extras: ClassVar[type[Section] | None] = None

    def __post_init__(self) -> None:
        self.check()
        self._warn()
        object.__setattr__(self, "_made", True)

    def __setattr__(self, name: str, value: Any) -> None:
        made = "_made" in self.__dict__
        if made:
            refuse_unknown_fields(type(self), [name])
        before = self.__dict__.get(name)
        object.__setattr__(self, name, value)
        if made:
            try:
                self.check()
            except ConfigError:
                object.__setattr__(self, name, before)
                raise
            self._warn(f"{type(self).__name__}.{name}")

    def document(self) -> Document:
        """What a YAML file would say, as far as it differs from the defaults; extras are not in it."""
        document: Document = {}
        for name, place in self.places.items():
            value = plain(getattr(self, name))
            if not _is_default(self, name, value):
                _put(document, place, value)
        return document

    def names(self) -> Names:
        """How the places of the document and of the extras are called."""
        own = {place: f"{type(self).__name__}.{name}" for name, place in self.places.items()}
        beside = self.extras.model_fields if self.extras else {}
        extras: dict[Place, str] = {(name,): f"{type(self).__name__}.{name}" for name in beside}
        return {(): type(self).__name__, **extras, **own}

    def check(self, known: KnownNames | None = None) -> Configuration:
        """The configuration that the document means.

        Raises:
            ConfigError: Lists every problem by the name of its field.
        """
        if self.extras is not None:
            self.checked_extras()
        return checked_document(self.document(), self.names(), known)

    def checked_extras(self) -> Any:
        """The fields that a YAML file has not, as their schema reads them.

        Raises:
            ConfigError: Lists every problem by the name of its field.
        """
        assert self.extras is not None  # asked for only of classes that have some
        given = {name: getattr(self, name) for name in self.extras.model_fields if hasattr(self, name)}
        kept = {
            name: value if name == "example_inputs" else plain(value)
            for name, value in given.items()
            if not _is_default(self, name, value)
        }
        return checked_extras(self.extras, kept, self.names())

    def _warn(self, changed: str = "") -> None:
        sections = [self.checked_extras()] if self.extras is not None else []
        document = self.document()
        warn_of([*sections, checked_document(document, self.names())], self.names(), document, changed)


@dataclass
class AccuracyCriterion(Conf):
    """The accuracy to keep.

    Attributes:
        higher_is_better: Direction of the metric.
        criterion: ``relative`` (the loss allowed is ``tolerable_loss * |baseline|``) or ``absolute``.
        tolerable_loss: The loss allowed; exactly on target meets.
    """

    higher_is_better: bool = True
    criterion: str = "relative"
    tolerable_loss: float = 0.01

    places: ClassVar[Mapping[str, Place]] = {"higher_is_better": ("tuning", "accuracy_criterion", "higher_is_better")}

    def document(self) -> Document:
        document = super().document()
        if self.criterion not in ("relative", "absolute"):
            hint = did_you_mean(str(self.criterion), ["relative", "absolute"])
            raise ConfigError(
                f"AccuracyCriterion.criterion: expected relative or absolute, got {describe(self.criterion)}{hint}"
            )
        if (self.criterion, self.tolerable_loss) != ("relative", 0.01):
            _put(document, ("tuning", "accuracy_criterion", self.criterion), plain(self.tolerable_loss))
        return document

    def names(self) -> Names:
        loss = "AccuracyCriterion.tolerable_loss"
        place = ("tuning", "accuracy_criterion")
        return {**super().names(), (*place, "relative"): loss, (*place, "absolute"): loss}


@dataclass
class TuningCriterion(Conf):
    """How is looked for the best model, and when to stop.

    Attributes:
        strategy: Name of the strategy, one of your own included.
        strategy_kwargs: Settings of the strategy.
        timeout: Seconds in which to look on after success; 0 stops at the first.
        max_trials: Trials at most.
        objective: What is minimised among the models that meet: ``performance``, ``modelsize``, ``footprint`` or
            ``accuracy``; several as a list, with weights as ``{"modelsize": 0.3, "performance": 0.7}`` or
            ``{"objective": [...], "weight": [...]}``.
        latency: How latency is measured (``batch_size``, ``cores_per_instance``, ``warmup``, ``iteration``); INC has
            no such field.
    """

    strategy: str = "basic"
    strategy_kwargs: Mapping[str, Any] | None = None
    timeout: float = 0
    max_trials: int = 100
    objective: str | Sequence[str] | Mapping[str, Any] = "performance"
    latency: Mapping[str, int] | None = None

    places: ClassVar[Mapping[str, Place]] = {
        "strategy": ("tuning", "strategy", "name"),
        "timeout": ("tuning", "exit_policy", "timeout"),
        "max_trials": ("tuning", "exit_policy", "max_trials"),
        "latency": ("tuning", "latency"),
    }

    def document(self) -> Document:
        document = super().document()
        if self.strategy_kwargs is not None:
            # As it is: it may hold functions (``hawq_v2_loss``).
            _put(document, ("tuning", "strategy", "strategy_kwargs"), self.strategy_kwargs)
        key, value = _objective(plain(self.objective))
        if value != "performance":
            _put(document, ("tuning", key), value)
        return document

    def names(self) -> Names:
        objective = "TuningCriterion.objective"
        return {
            **super().names(),
            ("tuning", "strategy"): "TuningCriterion.strategy",
            ("tuning", "strategy", "strategy_kwargs"): "TuningCriterion.strategy_kwargs",
            ("tuning", "objective"): objective,
            ("tuning", "multi_objectives"): objective,
        }


def _objective(value: Any) -> tuple[str, Any]:
    """Key of the section ``tuning`` and its value."""
    if isinstance(value, str) or not isinstance(value, list | dict):
        return "objective", value
    if isinstance(value, list):
        return "multi_objectives", {"objective": value}
    if set(value) == {"multi_objectives"}:
        value = value["multi_objectives"]
    elif value and set(value) <= set(OBJECTIVES):
        value = {"objective": list(value), "weight": list(value.values())}
    return "multi_objectives", _given(value)


def _given(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class _Judged(Conf):
    """What the classes for tuning have in common: the two criteria."""

    tuning_criterion: TuningCriterion
    accuracy_criterion: AccuracyCriterion

    def document(self) -> Document:
        document = super().document()
        for name, kind in (("tuning_criterion", TuningCriterion), ("accuracy_criterion", AccuracyCriterion)):
            part = getattr(self, name)
            if not isinstance(part, kind):
                found = describe(part) if isinstance(part, str | int | float | None) else f"a {type(part).__name__}"
                raise ConfigError(f"{type(self).__name__}.{name}: expected a {kind.__name__}, got {found}")
            _merge(document, part.document())
        strategy = document.get("tuning", {}).get("strategy", {})
        if strategy == {"name": "basic"}:
            del document["tuning"]["strategy"]  # the default: auto and conservative need not be told to drop it
        return document

    def names(self) -> Names:
        # ``document`` says what is wrong where one of them is something else.
        parts = [part.names() for part in (self.tuning_criterion, self.accuracy_criterion) if isinstance(part, Conf)]
        return {place: name for names in (*parts, super().names()) for place, name in names.items()}

    def _warn(self, changed: str = "") -> None:
        super()._warn(changed or type(self).__name__)  # the criteria have spoken for themselves


_COMMON: Mapping[str, Place] = {"device": ("device",)}
_EXCLUDED: Place = ("quantization", "excluded_precisions")
_RULES: Mapping[str, Place] = {
    "op_type_dict": ("quantization", "optype_wise"),
    "op_name_dict": ("quantization", "op_wise"),
    "quant_level": ("quantization", "quant_level"),
}


@dataclass
class PostTrainingQuantConfig(_Judged):
    """How a trained model is quantized without training it further.

    Attributes:
        device: ``cpu``.
        backend: ``default``.
        domain: What the model is for; accepted and without effect.
        recipes: A value is fixed, a list of values is tuned over; those not named here may be tuned.
        quant_format: ``QDQ`` or ``QOperator`` (ONNX).
        inputs, outputs: Names; the model's own by default.
        approach: ``static``, ``dynamic``, ``auto`` (either, per op) or ``weight_only``.
        calibration_sampling_size: Calibration samples; several sizes are tuned over, the first one first.
        op_type_dict: Rules by op type (a regular expression that matches the whole type):
            ``{"Conv": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}}``.
        op_name_dict: Rules by op name, likewise.
        reduce_range, example_inputs, diagnosis, ni_workload_name: Accepted and without effect.
        excluded_precisions: ``bf16``, ``fp16``: precisions that no op may fall back to.
        quant_level: ``auto``, 0 (conservative, from fp32 up) or 1 (``tuning_criterion.strategy``).
        accuracy_criterion: The accuracy to keep.
        tuning_criterion: How is looked for the best model, and when to stop.
    """

    device: str = "cpu"
    backend: str = "default"
    domain: str = "auto"
    recipes: Mapping[str, Any] = field(default_factory=dict)
    quant_format: str = "default"
    inputs: Sequence[str] = field(default_factory=list)
    outputs: Sequence[str] = field(default_factory=list)
    approach: str = "static"
    calibration_sampling_size: int | Sequence[int] = field(default_factory=lambda: [100])
    op_type_dict: Mapping[str, Any] | None = None
    op_name_dict: Mapping[str, Any] | None = None
    reduce_range: bool | None = None
    example_inputs: Any = None
    excluded_precisions: Sequence[str] = field(default_factory=list)
    quant_level: int | str = "auto"
    accuracy_criterion: AccuracyCriterion = field(default_factory=AccuracyCriterion)
    tuning_criterion: TuningCriterion = field(default_factory=TuningCriterion)
    diagnosis: bool = False
    ni_workload_name: str = "quantization"

    extras: ClassVar = QuantizationExtras
    places: ClassVar[Mapping[str, Place]] = {
        **_COMMON,
        **_RULES,
        "recipes": ("quantization", "recipes"),
        "approach": ("quantization", "approach"),
        "calibration_sampling_size": ("quantization", "calibration", "sampling_size"),
        "excluded_precisions": _EXCLUDED,
    }

    def document(self) -> Document:
        document = super().document()
        _put(document, ("quantization", "quant_level"), plain(self.quant_level))  # a file without it means 1
        return document


@dataclass
class QuantizationAwareTrainingConfig(_Judged):
    """How a PyTorch module is quantized while it is trained; see ``distune.training``.

    The fields mean what they mean in ``PostTrainingQuantConfig``; ``model_name`` is what the model is called. Every
    trial trains: with ``quant_level=1`` the first one is the model with all ops quantized.
    """

    device: str = "cpu"
    backend: str = "default"
    inputs: Sequence[str] = field(default_factory=list)
    outputs: Sequence[str] = field(default_factory=list)
    op_type_dict: Mapping[str, Any] | None = None
    op_name_dict: Mapping[str, Any] | None = None
    reduce_range: bool | None = None
    model_name: str = ""
    quant_format: str = "default"
    excluded_precisions: Sequence[str] = field(default_factory=list)
    quant_level: int | str = "auto"
    accuracy_criterion: AccuracyCriterion = field(default_factory=AccuracyCriterion)
    tuning_criterion: TuningCriterion = field(default_factory=TuningCriterion)

    extras: ClassVar = QuantizationExtras
    places: ClassVar[Mapping[str, Place]] = {**_COMMON, **_RULES, "excluded_precisions": _EXCLUDED}

    def document(self) -> Document:
        document = super().document()
        _put(document, ("quantization", "approach"), "quant_aware_training")
        _put(document, ("quantization", "quant_level"), plain(self.quant_level))  # a file without it means 1
        return document


@dataclass
class MixedPrecisionConfig(_Judged):
    """How a model is turned to a lower floating-point precision.

    Attributes:
        precisions: ``fp16`` or ``bf16``; ``precision`` is another name for it.
        op_type_dict, op_name_dict: Rules; ops whose ``dtype`` is ``fp32`` stay in it.
    """

    device: str = "cpu"
    backend: str = "default"
    precisions: str | Sequence[str] = "bf16"
    model_name: str = ""
    inputs: Sequence[str] = field(default_factory=list)
    outputs: Sequence[str] = field(default_factory=list)
    quant_level: int | str = "auto"
    tuning_criterion: TuningCriterion = field(default_factory=TuningCriterion)
    accuracy_criterion: AccuracyCriterion = field(default_factory=AccuracyCriterion)
    excluded_precisions: Sequence[str] = field(default_factory=list)
    op_name_dict: Mapping[str, Any] = field(default_factory=dict)
    op_type_dict: Mapping[str, Any] = field(default_factory=dict)
    example_inputs: Any = None
    precision: str | Sequence[str] | None = None

    extras: ClassVar = MixedPrecisionExtras
    places: ClassVar[Mapping[str, Place]] = {**_COMMON, **_RULES}

    def __post_init__(self) -> None:
        if self.precision is not None:
            self.precisions = self.precision
        super().__post_init__()


@dataclass
class BenchmarkConfig(Conf):
    """How a model is timed.

    Attributes:
        warmup: Runs before anything is timed.
        iteration: Timed runs at most; -1 lets the confidence interval decide.
        cores_per_instance: Threads of each instance; 1 unless said.
        num_of_instance: Processes that run at the same time.
        intra_num_of_threads: Another name for ``cores_per_instance``.
        inter_num_of_threads, diagnosis, ni_workload_name: Accepted and without effect.
    """

    inputs: Sequence[str] = field(default_factory=list)
    outputs: Sequence[str] = field(default_factory=list)
    backend: str = "default"
    device: str = "cpu"
    warmup: int = 5
    iteration: int = -1
    model_name: str = ""
    cores_per_instance: int | None = None
    num_of_instance: int = 1
    inter_num_of_threads: int | None = None
    intra_num_of_threads: int | None = None
    diagnosis: bool = False
    ni_workload_name: str = "profiling"

    extras: ClassVar = BenchmarkExtras
    places: ClassVar[Mapping[str, Place]] = _COMMON


def _is_default(conf: Any, name: str, value: Any) -> bool:
    """Whether a field holds its default; 0 is not False, and what cannot be compared is none."""
    item = next(item for item in fields(conf) if item.name == name)
    default = item.default_factory() if callable(item.default_factory) else item.default
    if default is None or value is None:
        return value is default
    return type(value) is type(default) and bool(value == default)


def _put(document: Document, place: Place, value: Any) -> None:
    for key in place[:-1]:
        document = document.setdefault(str(key), {})
    document[str(place[-1])] = value


def _merge(into: Document, other: Document) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
