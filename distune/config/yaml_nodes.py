"""YAML with positions: what ``yaml.safe_load`` would give, and where each key and value of it stands.

The positions survive into validation, so that a message can point at the line. Beyond ``safe_load``: a key that is
written twice is a problem, ``!!python/tuple`` reads as a tuple (1.x files carry it), and keys are always text (an op
may be called ``1`` or ``on``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from distune.config.diagnostics import Problem, Span

KeyPath = tuple[str | int, ...]

_MAX_VALUES = 100_000
"""Values of one file, aliases expanded: a bound against anchors that multiply."""


class Empty(dict[str, Any]):
    """A key without a value. 1.x reads it as an empty section; ``plain`` turns it back into ``None`` in arguments."""

    def __repr__(self) -> str:
        return "nothing"


def plain(value: Any) -> Any:
    """``value`` with every ``Empty`` in it as ``None``."""
    if isinstance(value, Empty):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value


@dataclass(frozen=True)
class Entry:
    """Where one value stands, and its key where it has one."""

    value: Span
    key: Span | None = None


@dataclass
class Document:
    """A parsed file.

    Attributes:
        data: Nested dicts, lists, tuples and scalars; ``Empty`` for null.
        entries: Position of every value by key path.
        problems: What is wrong with the YAML itself.
    """

    source: str
    data: Any = field(default_factory=dict)
    entries: dict[KeyPath, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def nearest_entry(self, path: KeyPath) -> tuple[KeyPath, Entry]:
        """The entry of ``path``, or of its longest part that the document has; the start of the file at last."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.entries:
                return path[:length], self.entries[path[:length]]
        return (), self.entries.get((), Entry(Span(self.source, 1, 1)))

    def forget(self, path: KeyPath) -> None:
        """Drop the positions of ``path`` and of everything in it."""
        for known in [known for known in self.entries if known[: len(path)] == path]:
            del self.entries[known]


def parse_yaml(text: str, source: str) -> Document:
    """Parse ``text``; problems are collected in the document, whose data are then only as good as the YAML."""
    document = Document(source)
    text = text.removeprefix("\ufeff")  # a byte order mark would otherwise become part of the first key
    lines = text.splitlines()
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        document.problems.append(_character_problem(error, source, text))
        return document
    try:
        root = loader.get_single_node()
        if root is not None:
            document.data = _Composer(loader, document, lines).build(root, (), None)
    except yaml.YAMLError as error:
        document.data = {}
        document.problems.append(_syntax_problem(error, source, lines))
    except RecursionError:
        document.data = {}
        document.problems.append(Problem(Span(source, 1, 1), "", "the file is nested too deeply"))
    finally:
        loader.dispose()
    return document


class _Composer:
    """Turns nodes into values and records where they stand."""

    def __init__(self, loader: yaml.SafeLoader, document: Document, lines: list[str]) -> None:
        self._loader = loader
        self._document = document
        self._lines = lines
        self._open: set[int] = set()
        self._flattened: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, path: KeyPath, key: Span | None) -> Any:
        """The value of ``node``, whose position goes to the document under ``path``."""
        self._count += 1
        if self._count > _MAX_VALUES:
            raise _refused("the aliases expand to too many values", node)
        if id(node) in self._open:
            raise _refused("this alias contains itself", node)
        self._document.entries[path] = Entry(self._span(node), key)
        self._open.add(id(node))
        try:
            return self._value(node, path)
        finally:
            self._open.discard(id(node))

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = [self.build(item, (*path, index), None) for index, item in enumerate(node.value)]
            if node.tag == "tag:yaml.org,2002:python/tuple":
                return tuple(items)
            if node.tag == "tag:yaml.org,2002:seq":
                return items
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise _refused(_tag_text(node.tag), node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        if id(node) not in self._flattened:  # an alias brings the same node again
            self._flattened.add(id(node))
            self._report_duplicates(node, path)
            self._loader.flatten_mapping(node)  # merge keys: ``<<: *defaults``; later pairs win
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                message = "a key must be text, not a list or a mapping"
                raise _refused(message, key_node)
            name = _whole(str(key_node.value), key_node)
            self._document.forget((*path, name))
            out[name] = self.build(value_node, (*path, name), self._span(key_node))
        return out

    def _report_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, Span] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            name, span = str(key_node.value), self._span(key_node)
            if name in first:
                message = f"written twice, first at {first[name]}; keep one"
                self._document.problems.append(Problem(span, ".".join(map(str, (*path, name))), message))
            first.setdefault(name, span)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if not node.tag.startswith("tag:yaml.org,2002:") or "python/" in node.tag:
            raise _refused(_tag_text(node.tag), node)
        try:
            value = self._loader.construct_object(node)
        except ValueError as error:
            message = f"{node.value!r} cannot be read ({error}); put it in quotes if it is text"
            raise _refused(message, node) from None
        if isinstance(value, str):
            return _whole(value, node)
        return Empty() if value is None else value

    def _span(self, node: yaml.Node) -> Span:
        mark, end = node.start_mark, node.end_mark
        text = self._lines[mark.line] if mark.line < len(self._lines) else ""
        length = end.column - mark.column if end.line == mark.line else len(text) - mark.column
        if isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style:
            length = 1
        return Span(self._document.source, mark.line + 1, mark.column + 1, max(1, length), text)


def _refused(message: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _whole(text: str, node: yaml.Node) -> str:
    """``text``, which an escape such as ``\\ud800`` may have made into something that no file and no name can hold.

    Raises:
        ConstructorError: It has half of a character in it.
    """
    half = re.search(r"[\ud800-\udfff]", text)
    if half is not None:
        escape = f"\\u{ord(half[0]):04x}"
        raise _refused(f"the escape {escape} is half of a character; write the character itself", node)
    return text


def _tag_text(tag: str) -> str:
    shown = tag.replace("tag:yaml.org,2002:", "!!")
    return f"the tag {shown} is not allowed: a configuration holds plain text, numbers, lists and mappings"


_SYNTAX = (
    ("'\\t'", "a tab cannot stand here; indent with spaces"),
    ("mapping values are not allowed", "a second ':' cannot stand here; check the indentation, or quote the value"),
    ("could not find expected ':'", "a key without a ':'; each line of a section reads 'key: value'"),
    ("but found another document", "a second document begins here; a configuration file holds one"),
    ("but found '<block mapping start>'", "this line is indented differently from its neighbours"),
    ("but found '-'", "a list item cannot stand here; check the indentation"),
    ("'<stream end>'", "the file ends inside a '[' or '{' that is not closed"),
    ("unexpected end of stream", "the file ends inside quotes that are not closed"),
    ("found undefined alias", "{message}; an '&name' must come before its '*name'"),
)
"""What the parser says (part of it), and what that means to somebody who did not write the parser."""


def _character_problem(error: yaml.reader.ReaderError, source: str, text: str) -> Problem:
    """A character that YAML does not allow; the line is shown with a mark in its place: a terminal would obey it."""
    start = text.rfind("\n", 0, error.position) + 1
    line = re.sub(r"[^\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "\ufffd", text[start:].partition("\n")[0])
    span = Span(source, text.count("\n", 0, start) + 1, error.position - start + 1, 1, line)
    code = ord(text[error.position])
    message = f"the character U+{code:04X} cannot stand in YAML; take it out, or write it as an escape in double quotes"
    return Problem(span, "", message)


def _syntax_problem(error: yaml.YAMLError, source: str, lines: list[str]) -> Problem:
    message = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "the YAML cannot be read")
    for said, meant in _SYNTAX:
        if said in message:
            message = meant.format(message=message) if "{message}" in meant else meant
            break
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return Problem(Span(source, 1, 1), "", message)
    text = lines[mark.line] if mark.line < len(lines) else ""
    return Problem(Span(source, mark.line + 1, mark.column + 1, 1, text), "", message)
