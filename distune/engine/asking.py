"""What the workers are asked about a config, and whether what is known of it already is enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from distune.config.job import TuningJob
from distune.engine.book import TrialBook
from distune.engine.decisive import DecisiveRanking
from distune.evaluation.criterion import meets
from distune.evaluation.order import SampleOrder
from distune.space.op_config import TuningConfig
from distune.strategies.stage import Stage, Trial
from distune.trial.messages import Judge, ResultBody


class Asking:
    """The requests of a run's trials. Without an order of the samples (``use``) every trial is scored in full."""

    def __init__(self, job: TuningJob, book: TrialBook) -> None:
        self._job = job
        self._book = book
        self._decisive = DecisiveRanking(job, book)
        self._order: SampleOrder | None = None

    def use(self, order: SampleOrder) -> None:
        """Trials may end early, and be ranked by the samples that decide, from now on."""
        self._order = order

    def to_survey(self, stage: Stage) -> TuningConfig | None:
        """The config whose decisive samples the stage needs and nobody has found yet."""
        base = self._decisive.base(stage, self._order)
        return None if base is None or self._decisive.knows(base) else base

    def surveyed(self, base: TuningConfig, answer: ResultBody) -> None:
        """Take the answer to ``survey_request``."""
        self._decisive.take(base, answer)

    def request(self, config: TuningConfig, stage: Stage) -> Judge:
        """What is asked about a candidate of ``stage``."""
        wanted = self._level(stage)
        targets = tuple((name, item.value, item.higher_is_better) for name, item in self._book.targets.items())
        floor = stage.floor if wanted == "verdict" else None
        body = Judge(config, wanted, self._book.target, self._job.criterion.higher_is_better, floor, targets)
        ranked = self._decisive.base(stage, self._order)
        return self._decisive.completed(body, ranked) if wanted == "ranking" and ranked is not None else body

    def survey_request(self, base: TuningConfig) -> Judge:
        """Asks for the samples that rank what differs from ``base`` in one op."""
        return replace(self.request(base, Stage("survey", ())), accuracy="survey")

    def is_enough(self, stage: Stage, trial: Trial) -> bool:
        """Whether ``stage`` needs to know no more of a trial of before."""
        if trial.complete or trial.accuracy is not None:
            return True
        match self._level(stage):
            case "verdict":
                return trial.verdict == "not_met" and (stage.floor is None or not self.may_reach(trial, stage.floor))
            case "ranking":
                return trial.score is not None
        return False

    def may_reach(self, trial: Trial, accuracy: float) -> bool:
        """Whether a trial that ended early may be at least as good as ``accuracy``."""
        higher = self._job.criterion.higher_is_better
        limit = trial.accuracy_high if higher else trial.accuracy_low
        return limit is None or meets(limit, accuracy, higher)

    def _level(self, stage: Stage) -> Literal["verdict", "ranking", "exact"]:
        """How closely the candidates of a stage are looked at."""
        if self._order is None:
            return "exact"
        if stage.accuracy == "verdict" and self._job.early_verdict:
            return "verdict"
        return "exact" if self._decisive.base(stage, self._order) is None else "ranking"


__all__ = ["Asking"]
