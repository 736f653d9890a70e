"""Finding user code by name: ``module:name`` and ``file.py:name``.

One road for everything that a user may write himself (``eval_func``, datasets, transforms, metrics, strategies, model
builders). A file is imported once per process under a private module name that depends on its absolute path alone, so
that asking twice gives the same objects and what it defines can be pickled by reference inside the process.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from distune.errors import UsageError, UserCodeError

_MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
_HERE = os.path.abspath(__file__)


def is_file_reference(location: str) -> bool:
    """True where ``location`` (the part before ``:name``) means a file rather than a module."""
    return location.endswith(".py") or "/" in location or os.sep in location


def split_reference(name: str) -> tuple[str, str]:
    """``(location, attribute)`` of ``location:attribute``; the attribute is empty where none is named."""
    location, colon, attribute = name.rpartition(":")
    if not colon or is_file_reference(attribute):  # ``C:\user\code.py`` has a colon too
        return name, ""
    return location, attribute


def import_object(name: str, what: str) -> Any:
    """The object that ``name`` refers to.

    Args:
        name: ``module:name`` or ``file.py:name``; the file absolute or relative to the current folder, the name may be
            dotted (``Class.method``).
        what: What the object is for, e.g. ``eval_func``; used in messages.

    Raises:
        UsageError: The name is malformed, or the module, file or attribute does not exist.
        UserCodeError: The module raises when it is imported; carries the user's traceback.
    """
    location, attribute = split_reference(name)
    if not location or not attribute:
        raise UsageError(f"{what}: {name!r} does not name an object; write module:name or file.py:name")
    found: Any = import_module_or_file(location, what)
    reached = location
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{what}: no {part!r} in {reached} ({_origin(found)}){_nearest(part, found)}")
        found = getattr(found, part)
        reached = f"{reached}:{part}" if reached == location else f"{reached}.{part}"
    return found


def import_module_or_file(name: str, what: str) -> ModuleType:
    """The module that ``name`` (``file.py`` or a dotted module name) refers to.

    Raises:
        UsageError: There is no such file or module.
        UserCodeError: It raises when it is imported; carries the user's traceback.
    """
    return _import_file(Path(name), what) if is_file_reference(name) else _import_module(name, what)


def _import_file(path: Path, what: str) -> ModuleType:
    path = Path(os.path.abspath(os.path.expanduser(path)))
    module_name = f"_distune_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{_identifier(path.stem)}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    if not path.is_file():
        raise UsageError(f"{what}: there is no file {path}{_nearest_file(path)}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{what}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # before it runs: dataclasses and pickle look modules up by name
    try:
        with _FolderOnPath(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that ends itself would end the run
        del sys.modules[module_name]
        raise _raised_on_import(what, str(path), error) from error
    return module


def _import_module(name: str, what: str) -> ModuleType:
    if not _MODULE_NAME.match(name):
        raise UsageError(f"{what}: {name!r} is neither a module name nor a file ending in .py")
    try:
        # Where the user stands is searched too, as ``python -m`` and scripts do.
        with _FolderOnPath(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(
                f"{what}: there is no module {error.name!r} on the import path or in {Path.cwd()}; "
                f"install it, add its folder to PYTHONPATH, or write the file: path/to/{name.split('.')[-1]}.py"
            ) from None
        raise _raised_on_import(what, name, error) from error
    except (Exception, SystemExit) as error:  # a script that ends itself would end the run
        raise _raised_on_import(what, name, error) from error


class _FolderOnPath:
    """While user code is imported its own folder can be imported from, behind everything that is installed."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __enter__(self) -> None:
        sys.path.append(self._folder)

    def __exit__(self, *_: object) -> None:
        # The last one is ours, also where the user's code has put the same folder in front.
        for index in range(len(sys.path) - 1, -1, -1):
            if sys.path[index] == self._folder:
                del sys.path[index]
                break


def user_traceback(error: BaseException, skip: Iterable[str] = ()) -> str:
    """The traceback of ``error`` without the frames of the import machinery, this file and the files in ``skip``."""
    unwanted = {_HERE, *skip}
    shown = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    current: traceback.TracebackException | None = shown
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        current.stack = traceback.StackSummary.from_list(
            [
                frame
                for frame in current.stack
                if frame.filename not in unwanted
                and not frame.filename.startswith("<frozen importlib")
                and not frame.filename.endswith(f"importlib{os.sep}__init__.py")
            ]
        )
        current = current.__cause__ or current.__context__
    return "".join(shown.format()).rstrip()


def _raised_on_import(what: str, where: str, error: BaseException) -> UserCodeError:
    return UserCodeError(f"{what}: {where} raises when it is imported:\n{user_traceback(error)}")


def _origin(holder: Any) -> str:
    return str(getattr(holder, "__file__", None) or getattr(holder, "__qualname__", "built in"))


def _nearest(name: str, holder: Any) -> str:
    public = [known for known in dir(holder) if not known.startswith("_")]
    # What the holder merely imported is a poor suggestion, but better than none.
    own = [known for known in public if getattr(getattr(holder, known), "__module__", None) == _module_of(holder)]
    for names in (own, public):
        close = difflib.get_close_matches(name, names, n=1)
        if close:
            return f"; did you mean {close[0]!r}?"
    return f"; it has: {', '.join(sorted(own)[:10])}" if own else "; it defines no public names"


def _module_of(holder: Any) -> str | None:
    return holder.__name__ if isinstance(holder, ModuleType) else getattr(holder, "__module__", None)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    close = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _identifier(stem: str) -> str:
    return re.sub(r"\W", "_", stem)


__all__ = ["import_module_or_file", "import_object", "is_file_reference", "split_reference", "user_traceback"]
