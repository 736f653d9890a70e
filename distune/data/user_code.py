"""Errors of the user's functions, shown as the user would see them: with the user's traceback and without ours."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from distune.errors import DistuneError, UserCodeError

_PACKAGE = str(Path(__file__).resolve().parents[1])


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn an exception of the user's code into a ``UserCodeError`` that carries its traceback.

    Errors of distune pass through (the user's function called us), and so does ``MemoryError``, which is a fact of
    the machine.

    Args:
        what: Whose code runs, e.g. ``eval_func 'score'``.
    """
    try:
        yield
    except (DistuneError, MemoryError):
        raise
    except Exception as error:
        raise UserCodeError(f"{what} raised {type(error).__name__}: {error}\n{user_traceback(error)}") from error


def guard(component: Any, what: str) -> AbstractContextManager[None]:
    """``user_code(what)`` around calls of a component that is not of this package, nothing around our own."""
    module = type(component).__module__
    return nullcontext() if module == "distune" or module.startswith("distune.") else user_code(what)


def user_traceback(error: BaseException) -> str:
    """The traceback of ``error`` without the frames of this package, causes included."""
    report = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = report
    while part is not None:
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if not f.filename.startswith(_PACKAGE)])
        part = part.__cause__ or part.__context__
    return "".join(report.format()).rstrip()
