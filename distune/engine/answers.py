"""What trials come of what the workers answer."""

from __future__ import annotations

import math
from dataclasses import replace

from distune.config.job import TuningJob
from distune.engine import events
from distune.engine.book import TrialBook
from distune.engine.dispatcher import Outcome
from distune.engine.quarantine import STRIKING
from distune.errors import TransportError
from distune.evaluation.criterion import all_meet, meets
from distune.strategies.stage import Candidate, Stage, Trial, Verdict
from distune.trial.messages import Accuracy, Failure


class Answers:
    """Makes trials of answers, gives their verdicts, and warns of failures.

    Attributes:
        quantize_s, accuracy_s, inference_s, compile_s: Seconds of all trials, summed over the ranks.
    """

    def __init__(self, job: TuningJob, book: TrialBook, listener: events.Listener) -> None:
        self._higher_is_better = job.criterion.higher_is_better
        self._book = book
        self._listener = listener
        self._explained: set[str] = set()
        self.quantize_s = self.accuracy_s = self.inference_s = self.compile_s = 0.0

    def trial(self, stage: Stage, candidate: Candidate, outcome: Outcome) -> Trial:
        """The trial, without a number of its own yet.

        Raises:
            TransportError: The answer is none to ``Judge``.
        """
        trial = Trial(
            id=0,
            stage=stage.name,
            config=candidate.config,
            verdict="failed",
            label=candidate.label,
            rank=outcome.rank,
            host=outcome.host,
            start_s=outcome.start_s,
            end_s=outcome.end_s,
            attempts=outcome.attempts,
        )
        body = outcome.body
        if isinstance(body, Failure):
            self._explain(body, outcome)
            return replace(trial, reason=body.message)
        if not isinstance(body, Accuracy):
            raise TransportError(f"worker {outcome.rank} answered Judge with {type(body).__name__}")
        self.quantize_s += body.quantize_s
        self.accuracy_s += body.evaluate_s
        self.inference_s += body.inference_s
        self.compile_s += body.compile_s
        # Bounds of NaN: a sample made it so, and no other can make it a number again.
        return replace(
            trial,
            verdict=self._verdict(body),
            accuracy=body.value if body.complete or math.isnan(body.low) else None,
            accuracy_low=_finite(body.low),
            accuracy_high=_finite(body.high),
            score=body.score,
            metrics=body.metrics,
            samples=body.samples,
            complete=body.complete,
            size_bytes=body.size_bytes,
            ops_executed_int8=body.ops_executed_int8,
            warnings=body.warnings,
        )

    def _explain(self, failure: Failure, outcome: Outcome) -> None:
        """Warn of a failed trial, of each cause once, with the traceback; of a quarantined config others have."""
        if failure.kind in STRIKING:
            return
        cause = failure.detail or failure.message
        if cause not in self._explained:
            self._explained.add(cause)
            text = f"a trial failed: {failure.message}" + (f"\n{failure.detail}" if failure.detail else "")
            self._listener.on(events.Warned(text, outcome.rank, outcome.host))

    def _verdict(self, body: Accuracy) -> Verdict:
        if not body.complete:
            return "not_met" if body.verdict is False else "not_judged"
        if self._book.targets:
            met = all_meet(body.metrics, self._book.targets)
        else:
            met = meets(body.value, self._book.target, self._higher_is_better)
        return "met" if met else "not_met"


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


__all__ = ["Answers"]
