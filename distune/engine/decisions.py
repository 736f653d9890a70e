"""The decisions of a run, in the order in which they are taken, kept in the journal.

Resuming takes every decision again, from the journalled results. What is decided as before is not written twice. Where
a decision differs (the exit policy was changed, so the budget is another), it and all after it are written again:
``journal.replay.decisions`` reads what holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distune.journal.journal import Journal
from distune.journal.replay import decisions, same_decision
from distune.strategies.stage import Trial


class DecisionLog:
    """Writes decisions to the journal.

    Args:
        journal: Open; the decisions that it holds already are compared with those taken now.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._before = decisions(journal)
        self._count = 0

    @property
    def upcoming(self) -> Mapping[str, Any] | None:
        """The decision that an earlier start took next; ``None`` where it came no further, or decided otherwise."""
        return self._before[self._count] if self._count < len(self._before) else None

    def add(self, **data: Any) -> None:
        """Enter the next decision. It is on disk after the journal's next commit."""
        before = self.upcoming
        numbered = {"number": self._count, **data}
        self._count += 1
        if before is not None and same_decision(before, numbered):
            return
        self._before = self._before[: self._count - 1]
        self._journal.append("decision", numbered)

    def refined(self, before: Trial, after: Trial, given_back: tuple[str, ...]) -> None:
        """Enter what the minimality pass came to; on disk at once."""
        self.add(kind="refine", trial=after.id, accepted=before.id, given_back=given_back)
        self.commit()

    def chosen(self, trial: Trial, tied: tuple[int, ...]) -> None:
        """Enter the winner, with the latency that decided; on disk at once."""
        latency = trial.latency
        self.add(
            kind="winner",
            trial=trial.id,
            config_hash=trial.config.hash,
            verdict=trial.verdict,
            accuracy=trial.accuracy,
            tied=tied,
            latency=None if latency is None else [latency.ratio, latency.ci_low, latency.ci_high],
        )
        self.commit()

    def commit(self) -> None:
        """Put what was added on disk."""
        self._journal.commit()
