"""Values that must never be written anywhere: access tokens."""

from __future__ import annotations

from typing import Any


class Secret:
    """Holds a token so that printing, logging, journalling or sending it shows or carries nothing.

    It does not travel either: a copy that was pickled for another process is empty, because only the process that
    talks to the service needs it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    @classmethod
    def wrap(cls, value: Any) -> Secret:
        """``value`` as a secret; a secret stays as it is and ``None`` is the empty one."""
        return value if isinstance(value, Secret) else cls("" if value is None else str(value))

    def reveal(self) -> str:
        """The value itself, for the one call that needs it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "'***'"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return Secret, ("",)
