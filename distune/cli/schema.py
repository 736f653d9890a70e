"""Print the JSON schema of the configuration, for editors, or its keys as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The form."""
    parser.add_argument("--keys", action="store_true", help="every key with its values, default and meaning (Markdown)")


def main(arguments: argparse.Namespace) -> int:
    """Print it on standard output."""
    from distune.api.names import known_names
    from distune.config.json_schema import json_schema

    if arguments.keys:
        print("\n".join(markdown_lines()))
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
