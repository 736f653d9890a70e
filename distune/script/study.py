"""Tunes a script: a strategy proposes parameters, child processes judge them, decisions are taken in order.

The strategies are those of the main job: the space is one without a choice of ops, with the user's parameters.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from distune.config.job import CriterionSpec, StrategySpec
from distune.engine.book import TrialBook
from distune.engine.stage_run import StageRun
from distune.errors import UsageError
from distune.evaluation.criterion import Target, all_meet, threshold_targets
from distune.script.file import ScriptExperiment
from distune.script.process import ScriptTrial
from distune.space.capability import OpInfo
from distune.space.op_config import OpConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import Answer, StrategyContext, TuningFinished, Wanted
from distune.strategies.registry import strategies, strategy_class
from distune.strategies.stage import Candidate, ProbeStage, Stage, Trial

Run = Callable[[Mapping[str, Any]], ScriptTrial]


@dataclass(frozen=True)
class StudyOutcome:
    """What came of it.

    Attributes:
        trials: In order.
        best: The trial that keeps the constraints and is best by the metrics to optimize; ``None`` if there is none.
        front: Where several metrics are optimized: ids of the trials that no other beats in all of them.
        notes: What the strategy said.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    front: tuple[int, ...]
    notes: tuple[str, ...]


def check_strategy(spec: StrategySpec) -> None:
    """Look at the strategy before anything runs.

    Raises:
        UsageError: It is unknown, does not tune parameters, or its settings are wrong.
    """
    cls = strategy_class(spec)
    if not cls.tunes_parameters:
        able = ", ".join(name for name, other in strategies().items() if other.tunes_parameters)
        raise UsageError(f"strategy {spec.name} does not tune parameters; those that do: {able}")
    cls.check(spec.kwargs, spec.name)


def tune_script(
    experiment: ScriptExperiment,
    strategy: StrategySpec,
    run: Run,
    seed: int = 1978,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> StudyOutcome:
    """Spend the budget of an experiment.

    Args:
        run: Judges one set of parameters; called in threads.
        on_trial: Told of every trial, in order.

    Raises:
        UsageError: See ``check_strategy``.
    """
    check_strategy(strategy)
    study = _Study(experiment, run, on_trial)
    notes: list[str] = []
    context = StrategyContext(
        record=study.book,
        criterion=study.criterion,
        kwargs=strategy.kwargs,
        seed=seed,
        stop_at_first=False,
        judge=study.judge,
        tell=notes.append,
        score=study.score,
        metrics=experiment.metrics,
        facts={"model": experiment.name},
    )
    with study:
        strategy_class(strategy).create(study.space, context).traverse()
    return StudyOutcome(study.book.trials, study.best(), study.front(), tuple(notes))


class _Study:
    """The engine of a study: the main job's stages and book over a pool of child processes."""

    def __init__(self, experiment: ScriptExperiment, run: Run, on_trial: Callable[[Trial], None]) -> None:
        self._experiment = experiment
        self._run = run
        self._on_trial = on_trial
        self._targets: Mapping[str, Target] = threshold_targets(experiment.metrics)
        self._optimized = [metric for metric in experiment.metrics if metric.strategy == "optimize"]
        self._first = next((m for m in experiment.metrics if m.strategy == "constraint"), experiment.metrics[0])
        if not self._targets:
            self._first = self._optimized[0]
        higher = self._first.higher_is_better
        target = self._first.threshold
        if target is None:  # nothing has to be kept
            target = -math.inf if higher else math.inf
        self.criterion = CriterionSpec("threshold", target, higher)
        self.book = TrialBook(experiment.budget, higher, 0.0, target)
        # one op with one option: nothing to choose but the parameters
        op = OpInfo("script", "script", (OpConfig("dynamic"),), "script")
        self.space = TuningSpace((op,), parameters=experiment.parameters)
        self._pool = ThreadPoolExecutor(experiment.parallel)

    def __enter__(self) -> _Study:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def judge(self, wanted: Wanted) -> Answer:
        """Have a stage done, as the engine of the main job does."""
        if self.book.remaining == 0:
            raise TuningFinished("the budget is spent")
        if isinstance(wanted, ProbeStage):
            raise UsageError("a script cannot be probed")
        stage = wanted if isinstance(wanted, Stage) else Stage("trial", [wanted])
        run = StageRun(stage, self.book, stop_at_first=False)
        open_trials: dict[Future[ScriptTrial], Candidate] = {}
        while not run.ended:
            for candidate in run.want(self._experiment.parallel):
                values = dict(candidate.config.parameters)
                open_trials[self._pool.submit(self._run, values)] = candidate
            for decision in run.decide():
                if not decision.again:
                    self._on_trial(decision.trial)
            if open_trials and not run.ended:
                for done in wait(open_trials, return_when=FIRST_COMPLETED).done:
                    run.take(self._trial(stage, open_trials.pop(done), done.result()))
        result = replace(run.result(False), finished=self.book.remaining == 0)
        return result if wanted is stage else result.trials[0]

    def _trial(self, stage: Stage, candidate: Candidate, found: ScriptTrial) -> Trial:
        trial = Trial(0, stage.name, candidate.config, "failed", candidate.label, host=socket.gethostname())
        if found.failure:
            return replace(trial, metrics=found.metrics, reason=found.failure)
        value = found.metrics[self._first.name]
        met = all_meet(found.metrics, self._targets) and not math.isnan(value)
        return replace(trial, verdict="met" if met else "not_met", accuracy=value, metrics=found.metrics)

    def score(self, trial: Trial) -> float | None:
        """The metrics to optimize as one number, lower is better: each in units of the first trial's."""
        costs = self._costs(trial)
        if costs is None:
            return None
        first = next((found for known in self.book.trials if (found := self._costs(known)) is not None), costs)
        return sum(cost / (abs(unit) or 1.0) for cost, unit in zip(costs, first, strict=True))

    def _costs(self, trial: Trial) -> tuple[float, ...] | None:
        if any(metric.name not in trial.metrics for metric in self._optimized) or trial.verdict == "failed":
            return None
        signs = [-1.0 if metric.higher_is_better else 1.0 for metric in self._optimized]
        return tuple(sign * trial.metrics[metric.name] for sign, metric in zip(signs, self._optimized, strict=True))

    def best(self) -> Trial | None:
        """The trial with the lowest score among those that keep the constraints, the earlier one among equals."""
        scored = [(found, trial.id, trial) for trial in self.book.met if (found := self.score(trial)) is not None]
        return min(scored, default=(0.0, 0, None))[2]

    def front(self) -> tuple[int, ...]:
        """Ids of the trials that no other one beats in every metric to optimize; empty for a single one."""
        if len(self._optimized) < 2:
            return ()
        costs = {trial.id: found for trial in self.book.met if (found := self._costs(trial)) is not None}
        return tuple(
            number for number, cost in costs.items() if not any(_beats(other, cost) for other in costs.values())
        )


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return tuple(one) != tuple(other) and all(a <= b for a, b in zip(one, other, strict=True))
