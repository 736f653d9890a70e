"""The types of single values: comma strings, percent, numbers as people write them, patterns, paths.

Every parser raises ``FaultError`` in the words of the user; ``checked`` makes it a validator of pydantic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, Strict, ValidationInfo, WithJsonSchema

from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Context, Fault, FaultError, context_of, to_pydantic
from distune.config.imports import split_reference
from distune.config.paths import PathError
from distune.config.vocabulary import ALGORITHMS, APPROACHES, DTYPES, GRANULARITIES, QUANT_LEVELS, SCHEMES


def checked(parse: Callable[[Any], Any]) -> BeforeValidator:
    """A validator that hands all faults of ``parse(value)`` to pydantic."""

    def validate(value: Any) -> Any:
        try:
            return parse(value)
        except FaultError as error:
            raise to_pydantic(error.faults) from None

    return BeforeValidator(validate)


def checked_in_context(parse: Callable[[Any, Context], Any]) -> BeforeValidator:
    """As ``checked``, for parsers that need the known names or the folder of the file."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        try:
            return parse(value, context_of(info))
        except FaultError as error:
            raise to_pydantic(error.faults) from None

    return BeforeValidator(validate)


def items(value: Any) -> list[Any]:
    """The items of a comma string, a list, a tuple or a single scalar, as raw values.

    Raises:
        FaultError: The value is empty, a mapping, or has an empty item.
    """
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if not all(parts):
            raise FaultError.of(f"expected values separated by commas, got {describe(value)}")
        return list(parts)
    if isinstance(value, list | tuple):
        if not value:
            raise FaultError.of("expected at least one value, got an empty list")
        return list(value)
    if isinstance(value, dict):
        raise FaultError.of(f"expected a value, a list or values separated by commas, got {describe(value)}")
    return [value]


def one_or_many(item: dict[str, Any]) -> WithJsonSchema:
    """The JSON schema of several values; ``config.json_schema`` widens it to all that ``items`` takes."""
    return WithJsonSchema({"type": "array", "items": item})


def words(what: str, known: Iterable[str]) -> BeforeValidator:
    """One or several of the ``known`` words, in the order written; upper and lower case are the same."""
    folded = {word.casefold(): word for word in known}

    def parse(value: Any) -> tuple[str, ...]:
        found: list[str] = []
        faults: list[Fault] = []
        for index, item in enumerate(items(value)):
            word = folded.get(item.casefold()) if isinstance(item, str) else None
            if word is None:
                message = f"{describe(item)} is no {what}{_choices(str(item), folded.values())}"
                # An item of a list has a position of its own; one of a comma string is found in its text.
                place = (index,) if isinstance(value, list | tuple) else ()
                faults.append(Fault(message, place, focus=str(item)))
            elif word not in found:
                found.append(word)
        if faults:
            raise FaultError(*faults)
        return tuple(found)

    return checked(parse)


def _choices(found: str, known: Iterable[str]) -> str:
    names = list(known)
    hint = did_you_mean(found, names)
    return f"{hint} (one of {', '.join(names)})" if "did you mean" in hint else f"; expected {', '.join(names)}"


def whole_numbers(what: str, minimum: int) -> BeforeValidator:
    """One or several whole numbers of at least ``minimum``."""

    def parse(value: Any) -> tuple[int, ...]:
        numbers: list[int] = []
        faults: list[Fault] = []
        for index, item in enumerate(items(value)):
            number = _whole(item)
            if number is None or number < minimum:
                place = (index,) if isinstance(value, list | tuple) else ()
                message = f"expected {what}: whole numbers of at least {minimum}, got {describe(item)}"
                faults.append(Fault(message, place, focus=str(item)))
            elif number not in numbers:
                numbers.append(number)
        if faults:
            raise FaultError(*faults)
        return tuple(numbers)

    return checked(parse)


def _whole(item: Any) -> int | None:
    if isinstance(item, bool):
        return None
    if isinstance(item, float):
        return int(item) if item.is_integer() else None  # 1.x writes ``bit: 7.0``
    try:
        return int(item)
    except (TypeError, ValueError):
        return None


def _number(value: Any) -> Any:
    # YAML 1.1 reads ``1e-2`` as text: it asks for a point and a sign.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _texts(value: Any) -> tuple[str, ...]:
    found = items(value) if value not in ([], ()) else []
    wrong = [index for index, item in enumerate(found) if not isinstance(item, str) or not item]
    if wrong:
        raise FaultError(*(Fault(f"expected a name, got {describe(found[index])}", (index,)) for index in wrong))
    return tuple(found)


def _relative(value: Any) -> float:
    number = math.nan
    percent = isinstance(value, str) and value.strip().endswith("%")
    if percent:
        number = _float(value.strip()[:-1]) / 100
    elif not isinstance(value, bool):
        number = _float(value)
    if math.isnan(number):
        raise FaultError.of(f"expected a share such as 0.01 or 1%, got {describe(value)}")
    if number < 0:
        raise FaultError.of(f"a tolerance cannot be negative, got {describe(value)}; write the loss allowed, e.g. 1%")
    if number >= 1:
        hint = "" if percent else f"; did you mean {number:g}%?" if number < 100 else ""
        raise FaultError.of(f"a relative tolerance must be below 1 (100%), got {describe(value)}{hint}")
    return number


def _absolute(value: Any) -> float:
    if isinstance(value, str) and value.strip().endswith("%"):
        raise FaultError.of(f"expected a number in the metric's own unit, got {value!r}; percent goes with 'relative'")
    number = math.nan if isinstance(value, bool) else _float(value)
    if not math.isfinite(number):
        raise FaultError.of(f"expected a number in the metric's own unit, e.g. 0.01, got {describe(value)}")
    if number < 0:
        raise FaultError.of(f"a tolerance cannot be negative, got {describe(value)}; write the loss allowed, e.g. 0.01")
    return number


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _pattern(value: Any) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise FaultError.of(
            f"{value!r} is not a regular expression: {error.msg} at character {(error.pos or 0) + 1}; "
            f"to match the text itself write {re.escape(value)!r}"
        ) from None
    return str(value)


def one_of(what: str, spellings: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Parser of one word (or number) with several spellings."""

    def parse(value: Any) -> Any:
        key = str(value)
        if isinstance(value, bool | dict | list) or key not in spellings:
            raise FaultError.of(f"{describe(value)} is no {what}{_choices(key, spellings)}")
        return spellings[key]

    return parse


def _device(value: Any) -> str:
    if value not in ("cpu", "gpu"):
        raise FaultError.of(f"expected cpu, or gpu for PyTorch models, got {describe(value)}")
    return str(value)


def resolved(text: Any, context: Context, *, must_exist: bool) -> str:
    """The absolute path that ``text`` means.

    Raises:
        FaultError: It is not text, a variable is unset, or (in a complete configuration) nothing is there.
    """
    if not isinstance(text, str) or not text:
        raise FaultError.of(f"expected a path, got {describe(text)}")
    try:
        path = context.resolver.absolute(text)
    except PathError as error:
        raise FaultError.of(str(error)) from None
    missing = context.resolver.missing(path) if must_exist and context.complete else ""
    if missing:
        raise FaultError.of(missing)
    return path


def reference(text: Any, context: Context, *, attribute: bool) -> str:
    """``module:name`` or ``/abs/file.py:name``; without ``attribute`` a module or a file.

    Raises:
        FaultError: As in ``resolved``, or a name is missing.
    """
    if not isinstance(text, str) or not text:
        raise FaultError.of(f"expected module:name or file.py:name, got {describe(text)}")
    try:
        found = context.resolver.reference(text)
    except PathError as error:
        raise FaultError.of(str(error)) from None
    if attribute and not all(split_reference(found)):
        raise FaultError.of(f"expected module:name or file.py:name, got {describe(text)}")
    missing = context.resolver.missing_reference(found) if context.complete else ""
    if missing:
        raise FaultError.of(missing)
    return found


Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Text = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False), BeforeValidator(_number)]
Names = Annotated[tuple[str, ...], checked(_texts), one_or_many({"type": "string"})]
Relative = Annotated[
    float, checked(_relative), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": "%$"}]})
]
Absolute = Annotated[float, checked(_absolute), WithJsonSchema({"type": "number", "minimum": 0})]
Pattern = Annotated[str, checked(_pattern)]
ApproachName = Annotated[str, checked(one_of("approach", APPROACHES)), WithJsonSchema({"enum": list(APPROACHES)})]
Device = Annotated[str, checked(_device)]
QuantLevel = Annotated[
    int | str, checked(one_of("quant_level", QUANT_LEVELS)), WithJsonSchema({"enum": ["auto", 0, 1, "O0", "O1"]})
]
Dtypes = Annotated[tuple[str, ...], words("dtype", DTYPES), one_or_many({"enum": list(DTYPES)})]
Schemes = Annotated[tuple[str, ...], words("scheme", SCHEMES), one_or_many({"enum": list(SCHEMES)})]
Granularities = Annotated[
    tuple[str, ...], words("granularity", GRANULARITIES), one_or_many({"enum": list(GRANULARITIES)})
]
Algorithms = Annotated[tuple[str, ...], words("algorithm", ALGORITHMS), one_or_many({"enum": list(ALGORITHMS)})]
Precisions = Annotated[tuple[str, ...], words("precision", ("bf16", "fp16")), one_or_many({"enum": ["bf16", "fp16"]})]
EvalFunc = Annotated[str, checked_in_context(lambda value, context: reference(value, context, attribute=True))]
ModuleReference = Annotated[str, checked_in_context(lambda value, context: reference(value, context, attribute=False))]
OutputPath = Annotated[str, checked_in_context(lambda value, context: resolved(value, context, must_exist=False))]
