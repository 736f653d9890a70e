"""What fp32 scores, and what follows from it: the targets of every trial, and how long one may take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from distune.config.job import TuningJob
from distune.engine.book import TrialBook
from distune.engine.dispatcher import Dispatcher, Outcome
from distune.engine.failures import raise_failure
from distune.errors import TransportError, UserCodeError
from distune.evaluation.criterion import check_directions, metric_targets, target_accuracy, threshold_targets
from distune.trial.messages import Accuracy, Baseline, Failure, RequestBody, Survey, Surveyed

_DEADLINE_S = 300.0
_DEADLINE_BASELINES = 50
"""A trial may take 50 times what scoring fp32 took, and 300 s at least: beyond that it hangs."""

_NOTHING_ALLOWED = (
    "fp32 scores exactly 0, of which a relative criterion allows no loss at all: give accuracy_criterion.absolute"
)

_UNLIKE_DATA = (
    "the evaluation data were not the same on all ranks (another order or other values), so one rank alone scored "
    "fp32, and trials on different ranks rest on different batches: leave out shuffling, or seed it alike everywhere"
)


def score_baseline(
    job: TuningJob, dispatcher: Dispatcher, book: TrialBook, shards: int, meanwhile: Callable[[], None]
) -> tuple[Accuracy, float]:
    """Have fp32 scored; sets the book's targets and the dispatcher's deadline.

    Args:
        shards: Workers that score it together, a shard each; the score is the same for any number. One alone scores it
            where they turn out to read different data.
        meanwhile: What else is wanted of the workers then; not called where the score is known.

    Returns:
        The score, and the seconds that it took, all workers' together.

    Raises:
        UserCodeError: The score is no finite number, so that nothing can be compared with it.
        UsageError: The model, the data or the user's function is at fault.
    """
    outcome = _scored(job, dispatcher, shards, meanwhile)
    body = outcome.body
    if not isinstance(body, Accuracy):
        raise TransportError(f"worker {outcome.rank} answered Baseline with {type(body).__name__}")
    seconds = max(outcome.end_s - outcome.start_s, body.evaluate_s)
    # How long training takes does not follow from how long scoring does: it has the deadline that the user gives.
    if job.limits.deadline_s is None and job.approach != "qat":
        dispatcher.deadline_s = max(_DEADLINE_S, _DEADLINE_BASELINES * seconds)
    _set_targets(job, book, body)
    if job.criterion.kind == "relative" and body.value == 0:
        body = replace(body, warnings=(*body.warnings, _NOTHING_ALLOWED))
    return body, seconds


def _scored(job: TuningJob, dispatcher: Dispatcher, shards: int, meanwhile: Callable[[], None]) -> Outcome:
    if dispatcher.knows(Baseline()):
        return _answered(job, dispatcher, [Baseline()])[0]
    if shards < 2:
        return _answered(job, dispatcher, [Baseline()], meanwhile)[0]
    outcomes = _answered(job, dispatcher, [Survey(shard, shards) for shard in range(shards)], meanwhile)
    surveys = tuple(outcome.body for outcome in outcomes if isinstance(outcome.body, Surveyed))
    if len(surveys) < shards:
        raise TransportError("a worker answered Survey with something else")
    if len({survey.data for survey in surveys}) == 1:
        return _answered(job, dispatcher, [Baseline(surveys)])[0]
    outcome = _answered(job, dispatcher, [Baseline()])[0]
    if not isinstance(outcome.body, Accuracy):
        return outcome
    return replace(outcome, body=replace(outcome.body, warnings=(*outcome.body.warnings, _UNLIKE_DATA)))


def _answered(
    job: TuningJob,
    dispatcher: Dispatcher,
    requests: Sequence[RequestBody],
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    tasks = [dispatcher.submit(request) for request in requests]
    meanwhile()
    outcomes = dispatcher.wait(tasks)
    for outcome in outcomes:
        if isinstance(outcome.body, Failure):
            means = "" if job.evaluation.eval_func is None else " with the eval_func"
            raise_failure(outcome.body, f"scoring the fp32 model{means} failed: ")
    return outcomes


def _set_targets(job: TuningJob, book: TrialBook, body: Accuracy) -> None:
    book.baseline = body.value
    book.target = target_accuracy(job.criterion, body.value)
    check_directions(job.evaluation, job.criterion, body.directions)
    if job.evaluation.each_must_meet and not job.evaluation.names:
        book.targets = metric_targets(job.criterion, body.metrics, body.directions)
    book.targets = {**book.targets, **threshold_targets(job.metrics)}
    compared = {*book.targets, *(objective.metric for objective in job.objectives)}
    judged = {f"metric {name}": value for name, value in body.metrics.items() if name in compared}
    for what, value in {**judged, "accuracy": body.value}.items():
        if not math.isfinite(value):
            number = "NaN" if math.isnan(value) else "infinite"
            raise UserCodeError(f"the fp32 model's {what} is {number}: no quantized model can be compared with it")


__all__ = ["score_baseline"]
