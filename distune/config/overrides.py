"""``--set key.path=value``: values from the command line take the place of those of the file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distune.config.diagnostics import Problem, Span
from distune.config.yaml_nodes import Document, Entry, KeyPath, parse_yaml

_PART = re.compile(r"""(?:"([^"]+)"|'([^']+)'|([^."'=]+))(\.|\Z)""")


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each ``key.path=value`` in ``document``; what cannot be set is added to its problems.

    The value is read as YAML. A part of the path that holds dots, an op's name say, is put in quotes.
    """
    for text in overrides:
        source = f"--set {text}"
        where = Span(source)
        key, equals, value = _split(text)
        path = _parts(key.strip())
        if not equals or not path:
            message = "expected key.path=value, e.g. tuning.strategy.name=basic; put a part with dots in quotes"
            document.problems.append(Problem(where, "", message))
            continue
        parsed = parse_yaml(value, source)
        if parsed.problems:
            document.problems.append(Problem(where, ".".join(path), parsed.problems[0].message))
            continue
        _set(document, path, parsed, where)


def _split(text: str) -> tuple[str, str, str]:
    """Split at the first ``=`` that is not in quotes."""
    match = re.match(r"""((?:"[^"]*"|'[^']*'|[^"'=])*)=(.*)\Z""", text, re.DOTALL)
    return (match[1], "=", match[2]) if match else (text, "", "")


def _parts(key: str) -> tuple[str, ...]:
    parts: list[str] = []
    position = 0
    while position < len(key):
        match = _PART.match(key, position)
        if match is None or (match[4] == "." and match.end() == len(key)):
            return ()
        parts.append((match[1] or match[2] or match[3]).strip())
        position = match.end()
    return tuple(parts)


def _set(document: Document, path: tuple[str, ...], parsed: Document, where: Span) -> None:
    section = document.data
    for depth, name in enumerate(path[:-1], start=1):
        inner = section.get(name)
        if path[:depth] == ("tuning", "strategy") and isinstance(inner, str):
            inner = {"name": inner}  # the short form of the file keeps its name beside what is added
            document.entries[("tuning", "strategy", "name")] = document.entries[("tuning", "strategy")]
        elif not isinstance(inner, dict):
            inner = {}
            document.forget(path[:depth])
        else:
            inner = dict(inner)  # an alias of the file may hold the same dict elsewhere; ``Empty`` becomes a section
        document.entries.setdefault(path[:depth], Entry(where, where))
        section[name] = inner
        section = inner
    document.forget(path)
    section[path[-1]] = parsed.data
    document.entries[path] = Entry(where, where)
    for inside in parsed.entries:
        full: KeyPath = (*path, *inside)
        document.entries[full] = Entry(where, where)
