"""How problems of a configuration are shown: all at once, each with its position, the key, and a caret under it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from distune.errors import ConfigError


@dataclass(frozen=True)
class Span:
    """A stretch of one line.

    Attributes:
        source: The file as the user named it, or the ``--set`` argument.
        line, column: From 1; line 0 means that the source has no lines.
        text: The whole line.
    """

    source: str
    line: int = 0
    column: int = 0
    length: int = 1
    text: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    def focused(self, part: str) -> Span:
        """The stretch of ``part`` inside this one, this one itself where ``part`` does not occur in it."""
        start = self.text.find(part, self.column - 1, self.column - 1 + self.length) if part and self.line else -1
        return self if start < 0 else replace(self, column=start + 1, length=len(part))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, which key, and what was expected."""

    where: Span
    key: str
    message: str

    def render(self) -> str:
        """``file:line:column: key.path: message`` and the line with a caret."""
        head = f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"
        if not self.where.text.strip():
            return head
        number = str(self.where.line)
        # Tabs stay tabs under tabs, so that the caret stands right whatever their width.
        pad = "".join("\t" if char == "\t" else " " for char in self.where.text[: self.where.column - 1])
        caret = "^" * self.where.length
        return f"{head}\n  {number} | {self.where.text}\n  {' ' * len(number)} | {pad}{caret}"


def config_error(source: str, problems: Iterable[Problem]) -> ConfigError:
    """One error for all ``problems``, in the order of the file."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: (problem.where.line, problem.where.column))
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    body = "\n".join(problem.render() for problem in ordered)
    return ConfigError(f"{source}: {count} in the configuration\n{body}")


_SAME = {"latency": "performance", "speed": "performance", "size": "modelsize", "memory": "footprint"}
"""Other words for a name, too different from it to be near."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, else what is known."""
    names = sorted(known)
    folded = {candidate.casefold(): candidate for candidate in reversed(names)}  # of aliases the capitalised one
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.55)
    meant = folded[close[0]] if close else _SAME.get(name.casefold())
    if meant in names:
        return f"; did you mean {meant!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def describe(value: object) -> str:
    """What was found instead, in the words of the file."""
    if value is None or repr(value) == "nothing":
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
