"""A failed request that ends the run, as the exception that says whose it is to mend."""

from __future__ import annotations

from typing import NoReturn

from distune.errors import DistuneError, UsageError, UserCodeError
from distune.trial.messages import Failure, ResultBody


def reason_of(body: ResultBody) -> str:
    """Why there is no answer of the kind that was asked for."""
    return body.message if isinstance(body, Failure) else f"unexpected answer {type(body).__name__}"


def raise_failure(failure: Failure, prefix: str = "") -> NoReturn:
    """Raise what ``failure`` stands for.

    Raises:
        UserCodeError: The user's own code raised.
        UsageError: The model, the data or the settings are at fault.
        DistuneError: Anything else.
    """
    text = f"{prefix}{failure.message}" + (f"\n{failure.detail}" if failure.detail else "")
    if failure.kind == "user_error":
        raise UserCodeError(text)
    raise UsageError(text) if failure.usage else DistuneError(text)
