"""Configs that have cost two child processes: they are not handed out again, cannot win, and are reported.

What counts is one piece of work (a judging, a measurement) that fails so on its first and its second attempt. The loss
of a rank is nobody's fault, and a question about the model (a probe, calibration) says nothing against a config. It
lasts over later starts, but where a config went over a limit, only as long as that is not raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from distune.trial.messages import Failure, FailureKind, Judge, MeasureFootprint, MeasureLatency, RequestBody

STRIKING: tuple[FailureKind, ...] = ("crash", "deadline", "memory")
"""Failures that cost a child."""

_WORK: dict[type, str] = {
    Judge: "judging it",
    MeasureLatency: "measuring its latency",
    MeasureFootprint: "measuring its memory footprint",
}


@dataclass(frozen=True)
class Quarantined:
    """One config.

    Attributes:
        config_hash: Identity of its tuning config.
        work: What cost the children: ``judging it``, ...
        failure: How the second of them ended.
        rank, host: Where.
    """

    config_hash: str
    work: str
    failure: Failure
    rank: int
    host: str

    @property
    def sentence(self) -> str:
        """For the user."""
        return (
            f"config {self.config_hash} is quarantined, since {self.work} has cost two child processes; "
            f"the second: {self.failure.message}"
        )


class Quarantine:
    """See the module's description.

    Args:
        tell: Told of each config that comes in.
    """

    def __init__(self, tell: Callable[[Quarantined], None] = lambda entry: None) -> None:
        self._tell = tell
        self._entries: dict[str, Quarantined] = {}

    @property
    def entries(self) -> tuple[Quarantined, ...]:
        """In the order in which they came."""
        return tuple(self._entries.values())

    def __contains__(self, config_hash: str) -> bool:
        return config_hash in self._entries

    @staticmethod
    def stands(body: RequestBody, failure: Failure, deadline_s: float | None, memory_bytes: int | None) -> bool:
        """Whether a failure of an earlier start still quarantines a config; else its work is worth another try.

        Args:
            deadline_s: Seconds that the work may take now; ``None``: no limit.
            memory_bytes: Bytes that its process may keep resident now; ``None``: the worker knows.
        """
        if type(body) not in _WORK or failure.kind not in STRIKING:
            return False
        if failure.limit is None:
            return True
        if failure.kind == "deadline":
            return deadline_s is not None and deadline_s <= failure.limit
        return memory_bytes is None or memory_bytes <= failure.limit

    def note(self, body: RequestBody, failure: Failure, rank: int, host: str) -> None:
        """Work is over, with ``failure``; quarantines its config where that cost children."""
        if isinstance(body, Judge | MeasureLatency | MeasureFootprint) and failure.kind in STRIKING:
            entry = Quarantined(body.config.hash, _WORK[type(body)], failure, rank, host)
            if entry.config_hash not in self._entries:
                self._entries[entry.config_hash] = entry
                self._tell(entry)

    def refusal(self, body: RequestBody) -> Quarantined | None:
        """Why ``body`` is not to be handed out; its failure says so."""
        if not isinstance(body, Judge | MeasureLatency | MeasureFootprint):
            return None
        entry = self._entries.get(body.config.hash)
        return None if entry is None else replace(entry, failure=replace(entry.failure, message=entry.sentence))
