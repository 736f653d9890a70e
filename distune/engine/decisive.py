"""Which samples rank the ops of a stage: those that decide about its base config, which is scored once in full."""

from __future__ import annotations

from dataclasses import replace

from distune.config.job import TuningJob
from distune.engine.book import TrialBook
from distune.evaluation.order import SampleOrder
from distune.space.op_config import TuningConfig
from distune.strategies.stage import Stage
from distune.trial.messages import Accuracy, Judge, ResultBody


class DecisiveRanking:
    """The decisive samples of every base config so far.

    Where there are none for a config (its numbers depend on the batch, or it could not be scored), ranking is full.
    """

    def __init__(self, job: TuningJob, book: TrialBook) -> None:
        self._wanted = job.ranking == "decisive"
        self._book = book
        self._found: dict[str, str] = {}

    def base(self, stage: Stage, order: SampleOrder | None) -> TuningConfig | None:
        """The config whose decisive samples rank the stage; ``None`` where it is ranked in full."""
        if not self._wanted or stage.accuracy != "ranking" or stage.base is None or order is None or not order.margins:
            return None
        return None if self._found.get(stage.base.hash) == "" else stage.base

    def knows(self, base: TuningConfig) -> bool:
        """Whether the samples of ``base`` were found."""
        return base.hash in self._found

    def completed(self, request: Judge, base: TuningConfig) -> Judge:
        """A request for ranking, with the samples to rank by."""
        return replace(request, base=base.hash, decisive=self._found[base.hash])

    def take(self, base: TuningConfig, answer: ResultBody) -> None:
        """The answer to the survey of ``base``. Its trial can then be compared with those that are ranked."""
        found = answer if isinstance(answer, Accuracy) else None
        self._found[base.hash] = "" if found is None else found.decisive
        trial = self._book.find(base.hash)
        if found is not None and trial is not None and trial.accuracy is None and trial.verdict != "failed":
            self._book.update(replace(trial, score=found.value))


__all__ = ["DecisiveRanking"]
