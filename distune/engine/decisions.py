"""The decisions of a run, in the order in which they are taken, kept in the journal.

Resuming takes every decision again, from the journalled results. What is decided as before is not written twice. Where
a decision differs (the exit policy was changed, so the budget is another), it is written again under its number, and
whoever reads the journal takes the last one of each number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distune.journal.journal import Journal


class DecisionLog:
    """Writes decisions to the journal.

    Args:
        journal: Open; the decisions that it holds already are compared with those taken now.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._before = latest_decisions(journal)
        self._count = 0
        self.diverged = False

    def add(self, **data: Any) -> None:
        """Enter the next decision. It is on disk after the journal's next commit."""
        number = self._count
        self._count += 1
        before = self._before.get(number)
        if before is not None and not self.diverged and _same(before, data):
            return
        if before is not None:
            self.diverged = True
        self._journal.append("decision", {"number": number, **data})

    def commit(self) -> None:
        """Put what was added on disk."""
        self._journal.commit()


def latest_decisions(journal: Journal) -> dict[int, Mapping[str, Any]]:
    """Decisions of a journal by number; where one was taken again, the later one."""
    return {int(record.data["number"]): record.data for record in journal.records("decision")}


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return {key: value for key, value in before.items() if key != "number"} == _as_stored(now)


def _as_stored(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
