"""Print the JSON schema of the configuration, for editors, or its keys or built-in components as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The form."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--keys", action="store_true", help="every key with its values, default and meaning (Markdown)")
    form.add_argument(
        "--components", action="store_true", help="datasets, transforms, filters, metrics and recipes (Markdown)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Print it on standard output."""
    from distune.api.names import known_names
    from distune.config.json_schema import json_schema

    if arguments.keys:
        print("\n".join(markdown_lines()))
    elif arguments.components:
        print("\n".join(component_lines()))
    else:
        print(json.dumps(json_schema(known_names()), indent=2, ensure_ascii=False))
    return 0


def markdown_lines() -> Iterator[str]:
    """The table of keys, line by line."""
    from distune.config.json_schema import key_table

    yield "| key | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, kind, default, meaning in key_table():
        if kind == "section":
            yield f"| **`{key}`** | | | {meaning} |"
        else:
            yield f"| `{key}` | {kind} | {default} | {meaning} |".replace("|  |", "| |")


def component_lines() -> Iterator[str]:
    """The tables of built-in components, line by line."""
    from distune.config.vocabulary import RECIPE_MEANINGS
    from distune.data.registry import DATASETS, FILTERS, TRANSFORMS
    from distune.metrics.base import METRICS
    from distune.space.recipes import DEFAULTS

    for registry in (DATASETS, TRANSFORMS, FILTERS, METRICS):
        yield from (
            f"## {registry.kind.capitalize()}s",
            "",
            "| name | arguments | what it does |",
            "| --- | --- | --- |",
        )
        for names, arguments, meaning in registry.described():
            listed = ", ".join(f"`{argument}`" for argument in arguments)
            yield f"| {', '.join(f'`{name}`' for name in names)} | {listed} | {meaning.replace('``', '`')} |"
        yield ""
    yield from ("## Recipes", "", "| name | default | what it does |", "| --- | --- | --- |")
    for name, meaning in RECIPE_MEANINGS.items():
        default = DEFAULTS.get(name)
        told = str(default).lower() if isinstance(default, bool) else ""
        yield f"| `{name}` | {told} | {meaning} |".replace("|  |", "| |")
