"""Dataclass trees to plain JSON values, back, and to a JSON schema, driven by their type hints.

Understood are ``None``, bool, int, float, str, ``Literal``, ``Any``, tuples of one type, mappings from str, unions with
``None`` and further dataclasses: what the files of the report room are made of.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


class Misfit(ValueError):
    """Plain values do not have the form of the dataclass; the message has the key path."""


def to_plain(value: Any) -> Any:
    """Plain JSON values. NaN and infinity become ``None``: they say "no number", and JSON has only null for that."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a numpy scalar
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(cls: type[T], value: Any) -> T:
    """Inverse of ``to_plain``.

    Raises:
        Misfit: ``value`` does not have the form of ``cls``.
    """
    return cast("T", _read(cls, value, ""))


def schema_of(cls: type[Any]) -> dict[str, Any]:
    """JSON schema of ``to_plain`` of a dataclass; descriptions come from the ``Attributes`` of the docstrings."""
    docs = attribute_docs(cls)
    hints = _hints(cls)
    return {
        "type": "object",
        "description": inspect.getdoc(cls).split("\n\n")[0].replace("\n", " "),  # type: ignore[union-attr]
        "properties": {
            item.name: {"description": docs[item.name], **_schema(hints[item.name])} for item in fields(cls)
        },
        "required": [item.name for item in fields(cls)],
        "additionalProperties": False,
    }


def attribute_docs(cls: type[Any]) -> dict[str, str]:
    """Description of every field, from the ``Attributes`` section of the class's docstring.

    Raises:
        KeyError: A field is not described.
    """
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + section):
        names, separator, text = entry.strip().partition(": ")
        if separator:
            for name in names.split(", "):
                found[name] = " ".join(text.split())
    if missing := [item.name for item in fields(cls) if item.name not in found]:
        raise KeyError(f"{cls.__name__} does not describe {', '.join(missing)}")
    return found


def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _read(hint: Any, value: Any, path: str) -> Any:
    where = path or "the file"
    origin = get_origin(hint)
    if hint is Any:
        return value
    if _is_union(hint):
        inner = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _read(inner[0], value, path)
    if is_dataclass(hint):
        return _read_dataclass(cast("type[Any]", hint), value, path)
    if origin is Literal:
        if value not in get_args(hint):
            raise Misfit(f"{where} is {value!r}, expected one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise Misfit(f"{where} is {value!r}, expected a list")
        return tuple(_read(get_args(hint)[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise Misfit(f"{where} is {value!r}, expected an object")
        return {key: _read(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise Misfit(f"{where} is {value!r}, expected {hint.__name__}")
    return value


def _read_dataclass(cls: type[Any], value: Any, path: str) -> Any:
    where = path or "the file"
    if not isinstance(value, dict):
        raise Misfit(f"{where} is {value!r}, expected an object")
    names = {item.name for item in fields(cls)}
    if unknown := sorted(value.keys() - names):
        raise Misfit(f"{where} has unknown keys: {', '.join(unknown)}")
    needed = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
    if missing := sorted(needed - value.keys()):
        raise Misfit(f"{where} lacks {', '.join(missing)}")
    hints = _hints(cls)
    return cls(**{name: _read(hints[name], item, f"{path}.{name}" if path else name) for name, item in value.items()})


_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    Any: {},
}


def _schema(hint: Any) -> dict[str, Any]:
    if hint in _SIMPLE:
        return dict(_SIMPLE[hint])
    if _is_union(hint):
        inner = [option for option in get_args(hint) if option is not type(None)]
        return {"anyOf": [_schema(inner[0]), {"type": "null"}]}
    if is_dataclass(hint):
        schema = schema_of(cast("type[Any]", hint))
        return {key: item for key, item in schema.items() if key != "description"}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _schema(get_args(hint)[0])}
    return {"type": "object", "additionalProperties": _schema(get_args(hint)[1])}
