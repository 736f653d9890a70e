"""The bridge to pydantic: one ``Fault`` a problem, in our words, at a place relative to the section that found it.

pydantic collects what it finds in all fields and prefixes the places on the way up. ``Section`` makes use of that: it
turns what pydantic says of its own fields into faults, adds what its own checks find, and raises them together, so
that a user sees every problem in one go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from distune.config.diagnostics import describe, did_you_mean
from distune.config.known import KnownNames
from distune.config.paths import PathResolver

Place = tuple[str | int, ...]

_OURS = "distune"


@dataclass(frozen=True)
class Fault:
    """A problem before its position is known.

    Attributes:
        place: Keys from the section that found it.
        at: Whether the caret stands under the key or under the value.
        focus: The part of the value that is meant.
    """

    message: str
    place: Place = ()
    at: Literal["key", "value"] = "value"
    focus: str = ""


@dataclass
class Context:
    """What the validators need from outside.

    Attributes:
        complete: The file names a model, so what it refers to must exist.
        notices: What is accepted with a warning; places from the root of the file.
    """

    resolver: PathResolver
    known: KnownNames = field(default_factory=KnownNames)
    complete: bool = False
    notices: list[Fault] = field(default_factory=list)


class FaultError(ValueError):
    """Raised by the parsers of values; ``raising`` hands its faults to pydantic."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults

    @classmethod
    def of(cls, message: str, focus: str = "") -> FaultError:
        """One fault about the value itself."""
        return cls(Fault(message, focus=focus))


def context_of(info: ValidationInfo) -> Context:
    """The context that ``load_config`` passed along."""
    return cast(Context, info.context)


def to_pydantic(faults: Iterable[Fault]) -> ValidationError:
    """The faults as the only kind of error through which pydantic takes several at once."""
    return ValidationError.from_exception_data(
        _OURS,
        [
            InitErrorDetails(
                type=PydanticCustomError(
                    _OURS, "{message}", {"message": fault.message, "at": fault.at, "focus": fault.focus}
                ),
                loc=fault.place,
                input=None,
            )
            for fault in faults
        ],
    )


def faults_of(error: ValidationError, section: type[BaseModel] | None = None) -> Iterator[Fault]:
    """What pydantic collected, in our words; ``section`` is the model whose own fields failed."""
    for detail in error.errors(include_url=False):
        place: Place = detail["loc"]
        if detail["type"] == _OURS:
            context = detail["ctx"]
            at = context["at"]
            if place and place[-1] == "[key]":
                place, at = place[:-1], "key"
            yield Fault(context["message"], place, at, context["focus"])
        else:
            yield _translated(detail, place, section)


class Section(BaseModel):
    """A mapping of the configuration; unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @classmethod
    def normalise(cls, data: Any) -> Any:
        """Bring a short form into the long one; what is not understood is returned as it is."""
        return data

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        """Faults between raw keys; runs also where a field is wrong."""
        return iter(())

    def check_values(self, context: Context) -> Iterator[Fault]:
        """Faults between valid values."""
        return iter(())

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        """Keys of the 1.x schema that are turned down on purpose, with the reason."""
        return {}

    @model_validator(mode="wrap")
    @classmethod
    def _collect(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(data, cls):
            return data
        context = context_of(info)
        data = cls.normalise(data)
        faults = list(cls.check_keys(data, context)) if isinstance(data, Mapping) else []
        section = None
        try:
            section = handler(data)
        except ValidationError as error:
            faults += faults_of(error, cls)
        if section is not None and not faults:
            faults += section.check_values(context)
        if section is None or faults:
            raise to_pydantic(faults)
        return section


def _translated(detail: ErrorDetails, place: Place, section: type[BaseModel] | None) -> Fault:
    """pydantic's kinds of error in plain words."""
    kind, found, context = detail["type"], describe(detail["input"]), detail.get("ctx", {})
    if place and place[-1] == "[key]":
        return Fault(f"not a valid key: {found}", place[:-1], "key")
    if kind == "extra_forbidden":
        return Fault(_unknown_key(str(place[-1]), section), place, "key")
    if kind == "missing":
        name = str(place[-1])
        return Fault(f"{name!r} is missing{_meaning(name, section)}", place[:-1], "key")
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'|(-?\d+)", context["expected"])
        names = [text or number for text, number in allowed]
        hint = did_you_mean(str(detail["input"]), names) if isinstance(detail["input"], str) else ""
        hint = hint if "did you mean" in hint else ""
        return Fault(f"expected one of {', '.join(names)}, got {found}{hint}", place)
    expected = _EXPECTED.get(kind, "something else")
    return Fault(f"expected {expected.format(**context)}, got {found}", place)


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "dict_type": "keys and values",
    "mapping_type": "keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_too_short": "text that is not empty",
}


def _unknown_key(name: str, section: type[BaseModel] | None) -> str:
    if section is None:
        return "unknown key"
    if issubclass(section, Section) and name in section.refused():
        return section.refused()[name]
    names = [field.alias or key for key, field in section.model_fields.items()]
    return f"unknown key{did_you_mean(name, names)}"


def _meaning(name: str, section: type[BaseModel] | None) -> str:
    if section is None or name not in section.model_fields:
        return ""
    description = section.model_fields[name].description or ""
    return f": {description[:1].lower()}{description[1:].rstrip('.')}" if description else ""
