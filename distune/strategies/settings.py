"""Reads values of ``strategy_kwargs``, with messages that name the setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from distune.errors import UsageError

T = TypeVar("T", bound=str)


def whole_number(kwargs: Mapping[str, Any], key: str, default: int, minimum: int = 1) -> int:
    """The setting ``key``, a whole number of at least ``minimum``.

    Raises:
        UsageError: It is something else.
    """
    value = kwargs.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UsageError(f"strategy_kwargs: {key} must be a whole number of at least {minimum}, not {value!r}")
    return value


def switch(kwargs: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """The setting ``key``, true or false.

    Raises:
        UsageError: It is something else.
    """
    value = kwargs.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"strategy_kwargs: {key} must be true or false, not {value!r}")
    return value


def one_of(kwargs: Mapping[str, Any], key: str, choices: tuple[T, ...]) -> T:
    """The setting ``key``, one of ``choices``; the first is the default.

    Raises:
        UsageError: It is something else.
    """
    value = kwargs.get(key, choices[0])
    for choice in choices:
        if value == choice:
            return choice
    raise UsageError(f"strategy_kwargs: {key} must be one of {', '.join(choices)}, not {value!r}")
