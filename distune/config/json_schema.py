"""The configuration's JSON schema, for editors, and the same as a table of keys, for people.

Both are made from the sections themselves, so that neither can drift from what ``validate`` takes. The schema is what
an editor can check while one types; what needs the files, the registered names or two keys at once only ``validate``
finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distune.config.known import KnownNames
from distune.config.schema import Configuration
from distune.config.schema_data import NO_EFFECT
from distune.config.vocabulary import (
    ARGUMENT_RECIPES,
    BOOLEAN_RECIPES,
    FRAMEWORKS,
    GRAPH_LEVELS,
    RECIPE_MEANINGS,
    RECIPES,
)

_COMPONENTS = {"dataset": "datasets", "filter": "filters", "metric": "metrics", "transform": "transforms"}
"""Keys that name components, and the field of ``KnownNames`` that holds their names."""


def json_schema(known: KnownNames) -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of the whole file.

    Args:
        known: Registered names, offered as examples where one's own may stand as well.
    """
    schema: dict[str, Any] = _tidied(Configuration.model_json_schema())
    sections = schema["$defs"]
    sections["Model"]["properties"]["framework"]["examples"] = list(FRAMEWORKS)
    sections["Strategy"]["properties"]["name"]["examples"] = sorted(known.strategies)
    _or_text(sections["Tuning"]["properties"], "strategy")
    for section in sections.values():
        for key, source in _COMPONENTS.items():
            field = section.get("properties", {}).get(key)
            if field is not None:
                field["examples"] = sorted(getattr(known, source))
    sections["Quantization"]["properties"]["recipes"] |= {
        "properties": {name: _recipe(name) for name in sorted({*RECIPES, *known.recipes})},
        "additionalProperties": False,
    }
    sections.pop("ComponentSpec", None)
    sections["MultiMetrics"] = {
        "type": "object",
        "description": sections["MultiMetrics"]["description"],
        "properties": _beside_metrics(sections),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "distune configuration",
        **schema,
    }


def key_table() -> Iterator[tuple[str, str, str, str]]:
    """``(key, kind, default, meaning)`` of every key, in the order of the sections, without those that do nothing."""
    schema = _tidied(Configuration.model_json_schema())
    sections = schema["$defs"]
    metric = {"type": "object", "description": "A metric under its name, with its arguments; one key for each."}
    sections["MultiMetrics"]["properties"] = {"<metric>": metric, **_beside_metrics(sections)}
    yield from _keys(schema, sections, "")


def _beside_metrics(sections: Mapping[str, Any]) -> dict[str, Any]:
    """In the file several metrics stand by their names beside these keys."""
    properties = sections["MultiMetrics"]["properties"]
    return {key: properties[key] for key in ("weight", "higher_is_better")}


def _keys(section: Mapping[str, Any], sections: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.get("properties", {}).items():
        if NO_EFFECT in field:
            continue
        key = f"{prefix}{name}"
        inner, many = _section_of(field, sections)
        if inner is None:
            required = name in section.get("required", ())
            yield key, _kind(field), "required" if required else _default(field), field.get("description", "")
        else:
            yield key + many, "section", "", field.get("description", inner.get("description", ""))
            yield from _keys(inner, sections, f"{key}{many}.")


def _section_of(field: Mapping[str, Any], sections: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    """The section that a field holds, and how it stands in the key: ``[]`` in a list, ``.<pattern>`` in a mapping."""
    for way in (field, *field.get("anyOf", ())):
        for holder, many in ((way, ""), (way.get("items"), "[]"), (way.get("additionalProperties"), ".<pattern>")):
            if isinstance(holder, Mapping) and "$ref" in holder:
                return sections[holder["$ref"].rpartition("/")[2]], many
    return None, ""


def _kind(field: Mapping[str, Any]) -> str:
    ways = [way for way in field.get("anyOf", (field,)) if way.get("type") != "null"]
    if len(ways) == 1 and "anyOf" in ways[0]:
        return _kind(ways[0])
    if len(ways) == 3 and ways[1].get("type") == "array" and ways[1].get("items") == ways[0]:
        return f"{_kind(ways[0])}; one or several"
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    return " or ".join(dict.fromkeys(_kind(way) if "enum" in way else _word(way) for way in ways))


def _word(way: Mapping[str, Any]) -> str:
    words = {"integer": "whole number", "boolean": "true, false", "string": "text", "object": "keys and values"}
    kind = str(way.get("const") or way.get("type", "anything"))
    return words.get(kind, "list" if kind == "array" else kind)


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if default is None or default in ("", [], {}):
        return ""
    if isinstance(default, list):
        return ", ".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _recipe(name: str) -> dict[str, Any]:
    meaning = {"description": RECIPE_MEANINGS[name]} if name in RECIPE_MEANINGS else {}
    return {**meaning, **_recipe_values(name)}


def _recipe_values(name: str) -> dict[str, Any]:
    if name in BOOLEAN_RECIPES:
        return {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "boolean"}}]}
    if name in ARGUMENT_RECIPES:
        return {"type": "object"}
    if name == "graph_optimization_level":
        return {"enum": [None, *GRAPH_LEVELS]}
    return {}


def _or_text(properties: dict[str, Any], name: str) -> None:
    """A section that may be written as one word."""
    field = properties[name]
    reference = field.pop("$ref", None)
    if reference is not None:
        field["anyOf"] = [{"$ref": reference}, {"type": "string"}]


def _tidied(value: Any, inside_properties: bool = False) -> Any:
    """As the file has it: without pydantic's titles, which say the key again, a component by its name or as a mapping,
    and several plain values as a list, one of them, or a comma string."""
    if isinstance(value, list):
        return [_tidied(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("$ref") == "#/$defs/ComponentSpec":
        return {"anyOf": [{"type": "string"}, {"type": "object"}], **{k: v for k, v in value.items() if k != "$ref"}}
    tidied = {
        key: _tidied(item, key in ("properties", "$defs"))
        for key, item in value.items()
        if inside_properties or not (key == "title" and isinstance(item, str))
    }
    items = tidied.get("items")
    if not inside_properties and tidied.get("type") == "array" and isinstance(items, dict) and _is_plain(items):
        rest = {key: item for key, item in tidied.items() if key not in ("type", "items")}
        return {"anyOf": [items, {"type": "array", "items": items}, {"type": "string"}], **rest}
    return tidied


def _is_plain(item: Mapping[str, Any]) -> bool:
    return item.get("type") in ("integer", "number", "boolean", "string") or "enum" in item


__all__ = ["json_schema", "key_table"]
