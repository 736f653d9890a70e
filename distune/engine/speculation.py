"""What the next stages will probably ask, so that ranks that would idle can begin with it.

A strategy is a function of the answers that it gets. So a second one, of the same class, is given the answers so far
and, for what is still open, such as are likely; what it asks then is what the real one will probably ask. Nothing that
comes of it decides anything: a result is used where the real strategy comes to ask for the very same work, and is
dropped where it does not.

Likely is that what is not known yet does not meet and is no better than what there is: most stages end so. In a search
for the shortest prefix (``use: prefix``) each border between failing and meeting is as likely as any other, so all of
them are followed, the nearer stages first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from distune.engine.book import TrialBook
from distune.space.op_config import Mode, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import Answer, StrategyContext, TuneStrategy, Wanted
from distune.strategies.stage import Candidate, ProbeStage, Stage, StageResult, Trial, most_accurate

FORESEEABLE = ("basic", "mse", "mse_v2", "hawq_v2", "conservative", "auto")
"""Strategies that do nothing but ask: a second one costs little and is noticed by nobody."""

_LOOKS = 6
"""Second strategies that one look ahead may take."""

_STAGES = 4
"""How many stages a look goes ahead."""

_CANDIDATES = 4096
"""Candidates of an open stage that answers are made up for; beyond that it is taken for endless."""


class _Unforeseen(Exception):
    """What comes next cannot be known."""


@dataclass(frozen=True)
class _Answered:
    """One question of the real strategy, its answer, and how many trials the book held then."""

    name: str
    answer: Answer
    trials: int


_Guess = Mapping[str, Trial]
"""Trials by config hash that a made-up answer holds."""


class Speculation:
    """See the module's description.

    Args:
        strategy: Class of the strategy.
        space: What it was given.
        context: What it was given.
        book: The run's trials.
    """

    def __init__(
        self, strategy: type[TuneStrategy], space: TuningSpace, context: StrategyContext, book: TrialBook
    ) -> None:
        self._strategy = strategy
        self._space = _remembering(space)
        self._context = context
        self._book = book
        self._answers: list[_Answered] = []

    def answered(self, wanted: Wanted, answer: Answer) -> None:
        """The real strategy asked ``wanted`` and got ``answer``."""
        self._answers.append(_Answered(_name(wanted), answer, len(self._book.trials)))

    def ahead(self, known: Mapping[str, Trial], wanted: Callable[[Stage | ProbeStage], int]) -> None:
        """Look ahead from the question that is open.

        Args:
            known: Answers to it that are there, by config hash.
            wanted: Told of each stage that may come, the likeliest first; says how many ranks are still idle.
        """
        lines: deque[tuple[_Guess, ...]] = deque([()])
        for _ in range(_LOOKS):
            if not lines:
                return
            try:
                for stage in self._follow(lines.popleft(), known, lines):
                    if wanted(stage) <= 0:
                        return
            except _Unforeseen:
                continue

    def _follow(
        self, line: tuple[_Guess, ...], known: Mapping[str, Trial], lines: deque[tuple[_Guess, ...]]
    ) -> Iterator[Stage | ProbeStage]:
        """What is asked one after the other where ``line`` answers the open question and those after it.

        Goes on with the likeliest answers. Where a stage may get several, ``lines`` get those instead.
        """
        book, question, generator = self._caught_up()
        for position in range(_STAGES + 1):
            stage = _stage(question)
            if position:
                # A stage that looks for a better base may be asked more exactly than can be known before there is one.
                if isinstance(stage, ProbeStage):
                    yield stage
                    return
                stage = replace(stage, candidates=_candidates(stage))
                if position >= len(line) and not (stage.use == "base" and book.best is None):
                    yield stage
            elif isinstance(stage, ProbeStage):
                return
            else:
                stage = replace(stage, candidates=_candidates(stage))
            there = {} if position else known
            if position < len(line):
                guess = line[position]
            else:
                guesses = list(_guesses(stage, there, book))
                if len(guesses) > 1:
                    lines.extend((*line, guess) for guess in guesses)
                    return
                guess = guesses[0]
                line = (*line, guess)
            answer = _answer(stage, guess, book, there, self._context.stop_at_first)
            question = _next(generator, answer.trials[0] if isinstance(question, TuningConfig) else answer)

    def _caught_up(self) -> tuple[TrialBook, Wanted, Any]:
        """A second strategy that was given all answers so far: its book, what it asks now, and itself."""
        book = TrialBook(self._book.max_trials, self._book.higher_is_better)
        book.baseline, book.target, book.targets = self._book.baseline, self._book.target, self._book.targets
        context = replace(
            self._context, record=book, judge=_refuse, tell=lambda message: None, think=_refuse, outside=_refuse
        )
        generator = self._strategy.create(self._space, context).next_tune_cfg()
        question = _next(generator, None)
        for answered in self._answers:
            if _name(question) != answered.name:
                raise _Unforeseen
            for trial in self._book.trials[len(book.trials) : answered.trials]:
                book.add(trial)
            question = _next(generator, answered.answer)
        return book, question, generator


def _remembering(space: TuningSpace) -> TuningSpace:
    """``space``, whose fallbacks are made once: every second strategy asks for nearly the same."""
    made: dict[tuple[str, tuple[str, ...], Mode], TuningConfig] = {}

    def fallback(config: TuningConfig, groups: Iterable[str], precision: Mode = "fp32") -> TuningConfig:
        key = (config.hash, tuple(groups), precision)
        if key not in made:
            made[key] = space.fallback(config, key[1], precision)
        return made[key]

    remembering = copy(space)
    object.__setattr__(remembering, "fallback", fallback)
    return remembering


def foresees(name: str, strategy: type[TuneStrategy]) -> bool:
    """Whether what a strategy asks next can be known by asking a second one."""
    own = strategy.__module__.startswith("distune.strategies.")
    return own and name in FORESEEABLE and strategy.traverse is TuneStrategy.traverse


def _next(generator: Any, answer: Answer | None) -> Wanted:
    try:
        wanted: Wanted = generator.send(answer)
    except Exception as error:  # its end, or an answer that it cannot cope with: a guess must not end the run
        raise _Unforeseen from error
    return wanted


def _refuse(*arguments: Any) -> NoReturn:
    """What a strategy asks of the world beside the engine: no second one may."""
    raise _Unforeseen


def _name(wanted: Wanted) -> str:
    return "" if isinstance(wanted, TuningConfig) else wanted.name


def _stage(wanted: Wanted) -> Stage | ProbeStage:
    return Stage("trial", [wanted]) if isinstance(wanted, TuningConfig) else wanted


def _candidates(stage: Stage) -> list[Candidate]:
    found: list[Candidate] = []
    for candidate in stage.candidates:
        found.append(candidate if isinstance(candidate, Candidate) else Candidate(candidate))
        if len(found) > _CANDIDATES:
            raise _Unforeseen
    return found


def _guesses(stage: Stage, known: Mapping[str, Trial], book: TrialBook) -> Iterator[_Guess]:
    """Answers that a stage may get, where ``known`` are there already."""
    candidates = _candidates(stage)
    found = {
        candidate.config.hash: trial
        for candidate in candidates
        if (trial := known.get(candidate.config.hash) or book.find(candidate.config.hash)) is not None
    }
    worst = _worst(list(found.values()), book)
    failing = {c.config.hash: found.get(c.config.hash) or _failing(stage, c, worst) for c in candidates}
    if stage.use == "prefix" and not stage.ends_run:
        for candidate in candidates:
            config_hash = candidate.config.hash
            if failing[config_hash].met:
                break
            if config_hash not in found:
                met = replace(failing[config_hash], verdict="met", accuracy=book.target, complete=True)
                yield {**failing, config_hash: met}
    yield failing


def _worst(trials: Sequence[Trial], book: TrialBook) -> Trial | None:
    """The trial that nobody will think helpful: that one is like most that are still to come."""
    sign = 1.0 if book.higher_is_better else -1.0
    by_accuracy = [trial for trial in trials if trial.accuracy is not None and trial.accuracy == trial.accuracy]
    by_score = [trial for trial in trials if trial.score is not None]
    if by_accuracy and len(by_accuracy) >= len(by_score):
        return min(by_accuracy, key=lambda trial: sign * (trial.accuracy or 0.0))
    return min(by_score, key=lambda trial: sign * (trial.score or 0.0)) if by_score else None


def _failing(stage: Stage, candidate: Candidate, like: Trial | None) -> Trial:
    made_up = Trial(0, stage.name, candidate.config, "not_met", candidate.label, complete=False)
    if like is None or stage.use != "rank":
        return made_up
    return replace(made_up, accuracy=like.accuracy, score=like.score, complete=like.complete)


def _answer(
    stage: Stage, guess: _Guess, book: TrialBook, known: Mapping[str, Trial], stop_at_first: bool
) -> StageResult:
    """The answer that a guess stands for; enters its trials."""
    trials: list[Trial] = []
    met: Trial | None = None
    for candidate in _candidates(stage):
        config_hash = candidate.config.hash
        trial = book.find(config_hash)
        if trial is None:
            if book.remaining <= stage.reserve:
                break
            trial = book.add(known.get(config_hash) or guess[config_hash])
        trial = replace(trial, label=candidate.label)
        trials.append(trial)
        if trial.met and met is None:
            met = trial
            if stage.exit == "first" and stage.use == "prefix":
                break
    if not trials or book.remaining == 0 or (met is not None and stage.ends_run and stop_at_first):
        raise _Unforeseen  # the run ends with it
    return StageResult(tuple(trials), met, most_accurate(trials, book.higher_is_better), finished=False)


__all__ = ["FORESEEABLE", "Speculation", "foresees"]
