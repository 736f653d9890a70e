"""Sampling strategies: a sampler is asked for tuning configs and told what came of them.

Asked in batches of a set size, never by the number of ranks, so that the same seed and the same answers give the same
run anywhere. The default objective is what the job minimises (latency, unless it says otherwise) among the configs
that meet the accuracy criterion, which is a constraint of the sampler; ``target: accuracy`` looks for the highest
accuracy instead, as the ancestor did.
"""

from __future__ import annotations

import math
import random
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Any, ClassVar, Literal

from distune.errors import MissingExtraError
from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.search_space import Point, SearchSpace, Unseen
from distune.strategies.settings import one_of, switch, whole_number
from distune.strategies.stage import Candidate, Stage, StageResult, Trial

Target = Literal["objective", "accuracy"]
TARGETS: tuple[Target, ...] = ("objective", "accuracy")

_CHANCES = 64
"""Random points that are looked at before the space is gone through in order for one that was not tried."""

_UNMEASURED = 1.0
"""Objective of a config that does not meet and so is not measured: as good as fp32, whose ratio is 1 by definition."""


@dataclass(frozen=True)
class _Proposal:
    """A candidate and the sampler's own handle on it."""

    candidate: Candidate
    handle: Any


class AskTellTuneStrategy(TuneStrategy):
    """Base of the strategies on Optuna's samplers.

    Attributes:
        batch_size: Configs asked for at once, unless the user says otherwise.
        learns: The sampler looks at what came of earlier configs, so that their accuracy must be known.
        from_default: The first config asked for is the default one.
        patience: How often the sampler is asked for one config when it repeats itself; then a point that was not
            tried is taken in its place.
        needs: Distributions that must be installed, with the extra of distune that brings each.
    """

    batch_size: ClassVar[int] = 4
    learns: ClassVar[bool] = True
    from_default: ClassVar[bool] = True
    patience: ClassVar[int] = 5
    needs: ClassVar[Mapping[str, str]] = {"optuna": "samplers"}
    tunes_parameters: ClassVar = True
    settings: ClassVar = {
        "target": "objective: minimise the objective among what meets the criterion (default); accuracy: look for the "
        "best accuracy.",
        "fallback": "Whether fp32 is among the options of each op (default: false).",
        "batch_size": "Configs asked for at once and judged in parallel; the same for any number of ranks.",
    }

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        one_of(kwargs, "target", TARGETS)
        switch(kwargs, "fallback")
        whole_number(kwargs, "batch_size", cls.batch_size)
        for package, extra in cls.needs.items():
            if find_spec(package) is None:
                raise MissingExtraError(package, extra, f"for strategy {name or cls.__name__}")

    @abstractmethod
    def sampler(self, optuna: Any, constraints: Mapping[str, Any]) -> Any:
        """The Optuna sampler. ``constraints``: its keyword arguments for constraints; empty where it needs none."""

    def next_tune_cfg(self) -> TuneGenerator:
        kwargs = self.context.kwargs
        search = SearchSpace(self.space, switch(kwargs, "fallback"))
        size = whole_number(kwargs, "batch_size", self.batch_size)
        study = _Study(self, search, one_of(kwargs, "target", TARGETS))
        name = type(self).__name__.removesuffix("TuneStrategy").lower()
        for number in count(1):
            batch = self.context.think(lambda: study.ask(size))
            if not batch:
                self.context.tell("space exhausted: every tuning config was judged")
                return
            candidates = [proposal.candidate for proposal in batch]
            accuracy: Literal["verdict", "exact"] = "exact" if self.learns else "verdict"
            result: StageResult = yield Stage(f"{name} {number}", candidates, use="best", accuracy=accuracy)
            if result.finished:
                return
            study.tell(batch, result)


class _Study:
    """One Optuna study over a search space, which never gives the same config twice."""

    def __init__(self, strategy: AskTellTuneStrategy, search: SearchSpace, target: Target) -> None:
        import optuna

        self._optuna = optuna
        self._strategy = strategy
        self._target = target
        self._search = search
        self._unseen = Unseen(search)
        self._random = random.Random(strategy.context.seed)
        self._distributions = {
            parameter.name: optuna.distributions.IntDistribution(0, len(parameter.choices) - 1)
            if parameter.ordered
            else optuna.distributions.CategoricalDistribution(tuple(range(len(parameter.choices))))
            for parameter in search.parameters
        }
        # Since 5.0 a trial carries its constraints; before, the sampler asked a function for them.
        self._sets_constraints = hasattr(optuna.trial.Trial, "set_constraint")
        constrained = target == "objective" and not self._sets_constraints
        constraints = {"constraints_func": _stored_violation} if constrained else {}
        with _quiet(optuna):
            self._study = optuna.create_study(
                direction="minimize", sampler=strategy.sampler(optuna, constraints), study_name="distune"
            )
        if strategy.from_default:
            self._study.enqueue_trial({parameter.name: parameter.default for parameter in search.parameters})

    def ask(self, size: int) -> list[_Proposal]:
        """Up to ``size`` configs that were not asked for before; fewer, or none, where the space has no more."""
        batch: list[_Proposal] = []
        with _quiet(self._optuna):
            while len(batch) < size and (proposal := self._propose()) is not None:
                batch.append(proposal)
        return batch

    def tell(self, batch: list[_Proposal], result: StageResult) -> None:
        """Tell what came of a batch."""
        judged = {trial.config.hash: trial for trial in result.trials}
        with _quiet(self._optuna):
            for proposal in batch:
                self._tell(proposal.handle, judged.get(proposal.candidate.config.hash))

    def _propose(self) -> _Proposal | None:
        for _ in range(self._strategy.patience):
            if self._unseen.exhausted:
                return None
            handle = self._study.ask(self._distributions)
            point = tuple(handle.params[parameter.name] for parameter in self._search.parameters)
            candidate = self._unseen.take(point)
            if candidate is not None:
                return _Proposal(candidate, handle)
            self._fail(handle)  # failed trials are left out of every sampler's model
        return self._fill_up()

    def _fill_up(self) -> _Proposal | None:
        """A point that was not tried, at random where the space is wide, else the next in order."""
        found: tuple[Point, Candidate] | None = None
        for _ in range(_CHANCES):
            point = tuple(self._random.randrange(len(parameter.choices)) for parameter in self._search.parameters)
            candidate = self._unseen.take(point)
            if candidate is not None:
                found = (point, candidate)
                break
        found = found or self._unseen.following()
        if found is None:
            return None
        point, candidate = found
        names = (parameter.name for parameter in self._search.parameters)
        self._study.enqueue_trial(dict(zip(names, point, strict=True)))
        return _Proposal(candidate, self._study.ask(self._distributions))

    def _tell(self, handle: Any, trial: Trial | None) -> None:
        accuracy = None if trial is None else trial.accuracy
        if trial is None or accuracy is None or not math.isfinite(accuracy):
            self._fail(handle)
            return
        context = self._strategy.context
        if self._target == "accuracy":
            self._study.tell(handle, -accuracy if context.criterion.higher_is_better else accuracy)
            return
        violation = self._violation(trial, accuracy)
        if self._sets_constraints:
            handle.set_constraint("accuracy", violation)
        else:
            handle.set_user_attr("violation", violation)
        measured = context.score(trial) if trial.met else None
        self._study.tell(handle, _UNMEASURED if measured is None else measured)

    def _violation(self, trial: Trial, accuracy: float) -> float:
        """How far the accuracy is on the wrong side of the target, relative to fp32's; at most 0 where it meets."""
        record = self._strategy.context.record
        missing = (record.target - accuracy) / (abs(record.baseline) or 1.0)
        if not self._strategy.context.criterion.higher_is_better:
            missing = -missing
        if math.isinf(missing):  # nothing has to be kept
            return -1.0
        return min(missing, 0.0) if trial.met else max(missing, math.ulp(1.0))

    def _fail(self, handle: Any) -> None:
        self._study.tell(handle, state=self._optuna.trial.TrialState.FAIL)


def _stored_violation(trial: Any) -> tuple[float]:
    return (trial.user_attrs["violation"],)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep Optuna's notes of new studies, experimental samplers and flat objectives from the user.

    Its settings are left as they were found.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
