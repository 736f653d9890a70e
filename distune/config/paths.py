"""Paths in a configuration: variables are expanded, and what is relative is relative to the file's folder."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distune.config.imports import is_file_reference, split_reference

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(?P<fallback>:-[^}]*)?\}|(?P<broken>\$\{)")


class PathError(ValueError):
    """A path cannot be resolved; the message is a whole clause without position."""


@dataclass(frozen=True)
class PathResolver:
    """Resolves the paths of one configuration file.

    Attributes:
        folder: The file's folder, absolute.
        environ: Where variables come from.
    """

    folder: Path
    environ: Mapping[str, str]

    def expand(self, text: str) -> str:
        """``text`` with ``${NAME}`` and ``${NAME:-default}`` replaced; an empty variable takes the default too.

        Raises:
            PathError: A variable is not set and has no default, or a ``${`` is not closed.
        """

        def value(match: re.Match[str]) -> str:
            if match["broken"]:
                raise PathError("a '${' is not closed; write ${NAME} or ${NAME:-default}")
            name, fallback = match["name"], match["fallback"]
            found = self.environ.get(name)
            if found is not None and (found or fallback is None):
                return found
            if fallback is None:
                raise PathError(f"the variable {name} is not set; set it, or write ${{{name}:-default}}")
            return fallback[2:]

        return _VARIABLE.sub(value, text)

    def absolute(self, text: str) -> str:
        """The absolute path that ``text`` means; a URL stays as it is.

        Raises:
            PathError: As in ``expand``.
        """
        expanded = self.expand(text)
        if "://" in expanded:
            return expanded
        return os.path.normpath(self.folder / os.path.expanduser(expanded))

    def reference(self, text: str) -> str:
        """``module:name`` as it is, ``file.py:name`` with the file absolute.

        Raises:
            PathError: As in ``expand``.
        """
        expanded = self.expand(text)
        location, attribute = split_reference(expanded)
        if not is_file_reference(location):
            return expanded
        path = self.absolute(location)
        return f"{path}:{attribute}" if attribute else path

    def missing(self, path: str) -> str:
        """Why ``path`` (absolute) cannot be used, empty where it exists."""
        if "://" in path or os.path.exists(path):
            return ""
        target = Path(path)
        if not target.parent.is_dir():
            return f"there is no {path} (nor a folder {target.parent})"
        close = difflib.get_close_matches(target.name, os.listdir(target.parent), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"there is no {path}{hint}"

    def missing_reference(self, reference: str) -> str:
        """Why the file of ``reference`` cannot be used, empty where it exists or is a module."""
        location, _ = split_reference(reference)
        return self.missing(location) if is_file_reference(location) else ""
