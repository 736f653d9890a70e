"""The book of judged trials: ids, budget, and the answer to a config that was judged before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from distune.evaluation.criterion import Target, better
from distune.strategies.stage import Trial, most_accurate


@dataclass
class TrialBook:
    """Trials in the order of their ids. Satisfies ``strategies.base.Record``.

    Attributes:
        max_trials: Trials that may be judged in the run.
        baseline, target: Accuracy of fp32, and the one that meets the criterion (NaN while unknown).
        targets: What each metric must reach where each must meet on its own; empty where ``target`` decides.
    """

    max_trials: int
    higher_is_better: bool = True
    baseline: float = float("nan")
    target: float = float("nan")
    targets: Mapping[str, Target] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._trials: list[Trial] = []
        self._by_hash: dict[str, int] = {}
        self._best: int | None = None

    @property
    def remaining(self) -> int:
        """Trials that the budget still allows."""
        return max(0, self.max_trials - len(self._trials))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every judged trial, by id."""
        return tuple(self._trials)

    @property
    def best(self) -> Trial | None:
        """The trial with the best accuracy, the earlier one among equals; ``None`` when all failed.

        The fp32 model is left out where it was judged as a trial: it is the baseline, not a result.
        """
        return None if self._best is None else self._trials[self._best]

    def best_of(self, wanted: Callable[[Trial], bool]) -> Trial | None:
        """As ``best``, among the trials that are ``wanted``."""
        candidates = (trial for trial in self._trials if not trial.config.is_fp32 and wanted(trial))
        return most_accurate(candidates, self.higher_is_better)

    @property
    def met(self) -> tuple[Trial, ...]:
        """Trials that meet the criterion, by id."""
        return tuple(trial for trial in self._trials if trial.met)

    def find(self, config_hash: str) -> Trial | None:
        """The trial that judged this config."""
        index = self._by_hash.get(config_hash)
        return None if index is None else self._trials[index]

    def add(self, trial: Trial) -> Trial:
        """Enter a newly judged trial and give it the next id."""
        entered = replace(trial, id=len(self._trials) + 1)
        self._by_hash[entered.config.hash] = len(self._trials)
        self._trials.append(entered)
        is_number = entered.accuracy is not None and entered.accuracy == entered.accuracy
        if entered.accuracy is not None and is_number and not entered.config.is_fp32:
            best = self.best
            if best is None or best.accuracy is None or better(entered.accuracy, best.accuracy, self.higher_is_better):
                self._best = entered.id - 1
        return entered

    def update(self, trial: Trial) -> None:
        """Put in what was measured of a trial after it was judged (latency, footprint, the accuracy in full)."""
        before = self._trials[trial.id - 1]
        self._trials[trial.id - 1] = trial
        if before.accuracy is None and trial.accuracy is not None:
            best = self.best_of(lambda wanted: True)
            self._best = None if best is None else best.id - 1
