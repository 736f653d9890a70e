"""Decides one stage, in candidate order, whatever order the answers arrive in.

``StageRun`` is pure: it says which configs it wants judged, takes outcomes, and gives the decisions that follow. Work
that ran ahead of a decision is either used when its turn comes or never looked at, so the decisions are the same for
one worker and for a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from distune.engine.book import TrialBook
from distune.strategies.stage import Candidate, Stage, StageResult, Trial, most_accurate

LAST_ROUNDS = 2
"""Trials a worker that are left of a stage when the longest of them should be begun first."""


@dataclass(frozen=True)
class Decision:
    """One candidate's turn has come.

    Attributes:
        index: Position in the stage, from 0.
        trial: The judged trial; carries this candidate's label.
        again: It was judged before, in this stage or an earlier one: no trial and no budget was used.
    """

    index: int
    trial: Trial
    again: bool


class StageRun:
    """The state of one stage.

    Args:
        stage: What the strategy asked for.
        book: The run's trials; decisions are entered here.
        stop_at_first: A candidate that meets ends the run (``timeout: 0``). Otherwise only stages that look for the
            shortest prefix end with the first that meets.
        enough: Whether what is known of a trial that was judged before is enough for this stage. Where it is not, its
            config is judged once more; that costs no budget.
    """

    def __init__(
        self, stage: Stage, book: TrialBook, stop_at_first: bool, enough: Callable[[Trial], bool] = lambda trial: True
    ) -> None:
        self.stage = stage
        self._book = book
        self._enough = enough
        self._ends_at_first = stage.exit == "first" and (stop_at_first or stage.use == "prefix")
        self._source: Iterator[Candidate] | None = (
            candidate if isinstance(candidate, Candidate) else Candidate(candidate) for candidate in stage.candidates
        )
        self._candidates: list[Candidate] = []
        self._outcomes: dict[str, Trial] = {}
        self._looked_at = 0
        self._asked: set[str] = set()
        self._unanswered: set[str] = set()
        self._unpaid: set[str] = set()
        self._last_asked = False
        self._decided: list[Trial] = []
        self._met: Trial | None = None
        self._over = False
        self._out_of_budget = False

    @property
    def ended(self) -> bool:
        """No further candidate will be decided."""
        return self._over

    @property
    def out_of_budget(self) -> bool:
        """The stage ended because the budget allows no further trial."""
        return self._out_of_budget

    @property
    def position(self) -> int:
        """Candidates decided so far."""
        return len(self._decided)

    @property
    def answers(self) -> dict[str, Trial]:
        """What is known of its candidates, by config hash."""
        return {**{trial.config.hash: trial for trial in self._decided}, **self._outcomes}

    def want(self, ahead: int, last: int = 0) -> list[Candidate]:
        """Candidates that need judging now, in order: at most ``ahead`` of them may be open at once.

        Never more than the budget could use. Each is named once. What was answered and waits for its turn is not open:
        else one slow trial would keep all workers waiting.

        Args:
            last: The stage's last so many candidates are wanted all at once and in the opposite order. Of candidates
                that change one op each, from the last op to the first, the last ones take longest, since nothing
                before an op is computed again: where they are begun last, workers wait for them.
        """
        if last and not self._last_asked and self._are_left(last):
            self._last_asked = True
            return self._ask(len(self._candidates))[::-1]
        return self._ask(ahead)

    def _are_left(self, last: int) -> bool:
        """Whether at most ``last`` candidates were not asked for yet."""
        return self._candidate(len(self._asked) + last) is None

    def _ask(self, ahead: int) -> list[Candidate]:
        """The next candidates, until ``ahead`` are open; goes on where it stopped the last time."""
        wanted: list[Candidate] = []
        while not self._over and len(self._unanswered) < ahead:
            candidate = self._candidate(self._looked_at)
            if candidate is None:
                break
            config_hash = candidate.config.hash
            known = self._book.find(config_hash)
            if config_hash not in self._asked and (known is None or not self._enough(known)):
                if known is None:
                    if self._book.remaining - self.stage.reserve <= len(self._unpaid):
                        break
                    self._unpaid.add(config_hash)
                self._asked.add(config_hash)
                if config_hash not in self._outcomes:
                    self._unanswered.add(config_hash)
                wanted.append(candidate)
            self._looked_at += 1
        return wanted

    def take(self, trial: Trial) -> None:
        """An outcome has arrived. ``trial.id`` is not looked at; the book gives it."""
        self._outcomes[trial.config.hash] = trial
        self._unanswered.discard(trial.config.hash)

    def decide(self, limit: int | None = None) -> list[Decision]:
        """The decisions that can be taken now, in candidate order, at most ``limit`` of them."""
        decisions: list[Decision] = []
        while not self._over and len(decisions) != limit:
            candidate = self._candidate(self.position)
            if candidate is None:
                self._over = True
                break
            decision = self._decide_one(candidate)
            if decision is None:
                break
            decisions.append(decision)
            if decision.trial.met and self._met is None:
                self._met = decision.trial
            if decision.trial.met and self._ends_at_first:
                self._over = True
        return decisions

    def _decide_one(self, candidate: Candidate) -> Decision | None:
        config_hash = candidate.config.hash
        known = self._book.find(config_hash)
        if known is not None:
            if config_hash in self._outcomes:
                known = completed(known, self._outcomes.pop(config_hash))
                self._book.update(known)
            elif not self._enough(known) and not self._is_answered(config_hash):
                return None
            trial, again = _labelled(known, candidate), True
        elif self._book.remaining <= self.stage.reserve:
            self._over = self._out_of_budget = True
            return None
        elif config_hash in self._outcomes:
            trial, again = self._book.add(_labelled(self._outcomes.pop(config_hash), candidate)), False
        else:
            return None
        self._unanswered.discard(config_hash)
        self._unpaid.discard(config_hash)
        self._decided.append(trial)
        return Decision(self.position - 1, trial, again)

    def _is_answered(self, config_hash: str) -> bool:
        """Whether a candidate of this stage was judged for it: there will be no better answer."""
        return config_hash in self._asked and config_hash not in self._unanswered

    def stop(self) -> None:
        """End the stage now: what is not decided will not be."""
        self._over = True

    def result(self, finished: bool) -> StageResult:
        """The answer to the strategy, with what was measured of the trials meanwhile."""
        trials = tuple(_refreshed(trial, self._book) for trial in self._decided)
        met = next((trial for trial in trials if trial.met), None)
        return StageResult(trials, met, most_accurate(trials, self._book.higher_is_better), finished)

    def _candidate(self, index: int) -> Candidate | None:
        while self._source is not None and len(self._candidates) <= index:
            following = next(self._source, None)
            if following is None:
                self._source = None
            else:
                self._candidates.append(following)
        return self._candidates[index] if index < len(self._candidates) else None


def completed(known: Trial, again: Trial) -> Trial:
    """A trial that was judged once more, to know more of it; where that failed, what was found before holds."""
    if again.verdict == "failed":
        return replace(known, complete=True, reason=again.reason)
    return replace(
        known,
        verdict=again.verdict,
        accuracy=again.accuracy,
        accuracy_low=again.accuracy_low,
        accuracy_high=again.accuracy_high,
        score=again.score if known.score is None else known.score,
        metrics=again.metrics,
        samples=again.samples,
        complete=again.complete,
    )


def _labelled(trial: Trial, candidate: Candidate) -> Trial:
    return trial if trial.label == candidate.label else replace(trial, label=candidate.label)


def _refreshed(trial: Trial, book: TrialBook) -> Trial:
    current = book.find(trial.config.hash)
    return trial if current is None else _labelled(current, Candidate(trial.config, trial.label))
