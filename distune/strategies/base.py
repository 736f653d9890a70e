"""The contract of a strategy.

A strategy decides what is tried next. It knows the tuning space and what came of what it asked for, and nothing of
backends, transports, ranks or their number. It asks by yielding from ``next_tune_cfg``: a tuning config, a ``Stage``
of many, or a ``ProbeStage``; the value of the ``yield`` expression is the ``Trial``, ``StageResult`` or
``ProbeResult`` that came of it. Yielding stages is what makes a strategy parallel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from typing import Any, ClassVar, Protocol

from typing_extensions import Self

from distune.config.job import CriterionSpec, TuningJob
from distune.config.parameters import TuningMetric
from distune.errors import UsageError
from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import ProbeResult, ProbeStage, Stage, StageResult, Trial

Wanted = TuningConfig | Stage | ProbeStage
Answer = Trial | StageResult | ProbeResult
TuneGenerator = Generator[Wanted, Any, None]


class TuningFinished(Exception):
    """The run is over: raised where a strategy goes on asking after it was told so."""


class Record(Protocol):
    """What a strategy may know of the run so far. Everything in it is the same for any number of ranks."""

    @property
    def remaining(self) -> int:
        """Trials that the budget still allows."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every judged trial, by id."""

    @property
    def baseline(self) -> float:
        """Accuracy of the fp32 model."""

    @property
    def target(self) -> float:
        """Accuracy that meets the criterion."""

    @property
    def best(self) -> Trial | None:
        """The trial with the best accuracy so far, the earlier one among equals."""


@dataclass(frozen=True)
class StrategyContext:
    """What a strategy is given.

    Attributes:
        record: The run so far, kept up to date by the engine.
        criterion: The accuracy criterion.
        kwargs: ``strategy_kwargs`` of the user.
        seed: Seed of everything random.
        stop_at_first: The first trial that meets ends the run (``timeout: 0``).
        judge: Asks the engine and waits for the answer; ``next_tune_cfg`` has the ``yield`` for that.
        tell: Says something to the user, e.g. what was left out.
        think: Calls a function that takes long (a sampler's) while the engine goes on handling what arrives.
        score: The objectives' weighted sum for a trial, lower is better and 1 is fp32; ``None`` where something that
            it needs was not measured.
        metrics: Metrics of the user's own, where he named some: to optimize, to keep, to store.
        outside: ``outside(key, work)`` gives what ``work`` returns, plain values, and records it under ``key``: for
            answers that come from outside the run (a service) and would be others the next time. A run that is
            resumed gets what was recorded and does not call ``work`` again. As with ``think`` the engine goes on.
        facts: What the run is about, for services that show it: ``model``, ``framework``, ``dataset``.
        job: The whole job; ``None`` where there is none (tests of a strategy alone).
    """

    record: Record
    criterion: CriterionSpec = field(default_factory=CriterionSpec)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1978
    stop_at_first: bool = True
    judge: Callable[[Wanted], Answer] = field(default=lambda wanted: _unbound(wanted))
    tell: Callable[[str], None] = field(default=lambda message: None)
    think: Callable[[Callable[[], Any]], Any] = field(default=lambda work: work())
    score: Callable[[Trial], float | None] = field(
        default=lambda trial: None if trial.latency is None else trial.latency.ratio
    )
    metrics: tuple[TuningMetric, ...] = ()
    outside: Callable[[str, Callable[[], Any]], Any] = field(default=lambda key, work: work())
    facts: Mapping[str, str] = field(default_factory=dict)
    job: TuningJob | None = None


def _of_inc(job: TuningJob | None) -> dict[str, Any]:
    """Arguments of a strategy's constructor in the form of INC 2.x."""
    evaluation = None if job is None else job.evaluation
    return {
        "model": None if job is None else job.model.live or job.model.path,
        "conf": job,
        "q_dataloader": None if job is None else job.calibration.dataloader,
        "q_func": None,
        "eval_dataloader": None if evaluation is None else evaluation.dataloader,
        "eval_func": None if evaluation is None else evaluation.eval_func,
        "dicts": None,
    }


def _nearest(key: str, settings: Mapping[str, str]) -> str:
    if not settings:
        return ": it has no settings"
    nearest = get_close_matches(key, settings, n=1)
    return f": did you mean {nearest[0]!r}?" if nearest else f"; it knows: {', '.join(sorted(settings))}"


def _unbound(wanted: Wanted) -> Answer:
    raise TuningFinished("this strategy is not connected to an engine")


class TuneStrategy(ABC):
    """Base of all strategies.

    Attributes:
        settings: The ``strategy_kwargs`` that the strategy knows, with what each means.
        required: Those of them that must be given.
        tunes_parameters: It chooses the user's own parameters (``space.parameters``) too.
        space: The tuning space.
        context: The rest of what it is given.
    """

    settings: ClassVar[Mapping[str, str]] = {}
    required: ClassVar[tuple[str, ...]] = ()
    tunes_parameters: ClassVar[bool] = False

    space: TuningSpace
    context: StrategyContext

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A constructor in the form of INC 2.x finds both set already, and passes on what it likes.
        if len(args) == 2 and not kwargs and isinstance(args[1], StrategyContext):
            self.space, self.context = args

    @classmethod
    def create(cls, space: TuningSpace, context: StrategyContext) -> Self:
        """A strategy of this class, whichever form its constructor has.

        That is ``(space, context)``, or the one of INC 2.x: ``(model, conf, q_dataloader, q_func=None,
        eval_dataloader=None, eval_func=None, dicts=None)``, which gets the model (or its path) and the parts of the
        job. Either way ``self.space`` and ``self.context`` are there.
        """
        strategy = cls.__new__(cls)
        strategy.space, strategy.context = space, context
        if "q_dataloader" in signature(cls.__init__).parameters:
            strategy.__init__(**_of_inc(context.job))  # type: ignore[misc]
        else:
            strategy.__init__(space, context)  # type: ignore[misc]
        return strategy

    def judge(self, wanted: Wanted) -> Any:
        """Have ``wanted`` judged: the ``Trial`` of a config, else a stage's or probe's result.

        For an overridden ``traverse``; in ``next_tune_cfg`` the ``yield`` does it.

        Raises:
            TuningFinished: The run is over; the engine takes it where ``traverse`` does not.
        """
        return self.context.judge(wanted)

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        """Look at ``strategy_kwargs`` before anything runs. Strategies that check values extend it.

        Args:
            kwargs: What the user gave.
            name: The strategy's name, for messages.

        Raises:
            UsageError: One is unknown, missing or of no use; all problems are listed.
        """
        problems = [
            f"unknown setting {key!r}{_nearest(key, cls.settings)}" for key in kwargs if key not in cls.settings
        ]
        problems += [f"{key!r} is required: {cls.settings[key]}" for key in cls.required if kwargs.get(key) is None]
        if problems:
            raise UsageError(f"strategy_kwargs of strategy {name or cls.__name__!r}: " + "; ".join(problems))

    @abstractmethod
    def next_tune_cfg(self) -> TuneGenerator:
        """Yield what is to be judged next; the value of each ``yield`` is the answer."""

    def traverse(self) -> None:
        """Ask for what ``next_tune_cfg`` yields until it has no more to say or the run is over."""
        generator = self.next_tune_cfg()
        answer: Answer | None = None
        while True:
            try:
                wanted = generator.send(answer)
            except StopIteration:
                return
            try:
                answer = self.context.judge(wanted)
            except TuningFinished:
                generator.close()
                return

    @property
    def record(self) -> Record:
        """The run so far."""
        return self.context.record
