"""Objects of the user's script: where they can travel to a child process or another rank, and where they stay.

By default what a job holds travels by cloudpickle. Where something in it cannot, every rank works in its own process
with the objects that its own run of the script made; the job then travels without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from distune.config.job import TuningJob
from distune.distributed.worker import pack_job
from distune.errors import TransportError, UsageError

_JOBS: dict[int, TuningJob] = {}
"""This rank's own job of each ``fit`` that stays, by the number of the call."""


def placed(job: TuningJob, call: int, isolation: str | None) -> tuple[TuningJob, str]:
    """The job in the place where its trials can run, and what to tell the user about it.

    Args:
        call: Number of the ``fit`` in this script; the same on every rank.
        isolation: What the user asked for; ``None`` lets the objects decide.

    Raises:
        UsageError: A child process was asked for and an object cannot travel to it; names the object.
    """
    if isolation == "none":
        return _staying(job, call), ""
    job = replace(job, isolation="process")
    try:
        pack_job(job)
    except UsageError as error:
        if isolation == "process":
            raise
        reason = str(error).partition("; make it")[0]
        return _staying(job, call), f"{reason}; so trials run in this process, without protection from what they do"
    return job, ""


@dataclass(frozen=True)
class StayingJob(TuningJob):
    """A job whose live objects do not travel: unpickled on another rank it has those of that rank.

    Attributes:
        call: Number of the ``fit`` that it belongs to.
    """

    call: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        plain = TuningJob(**{item.name: getattr(self, item.name) for item in fields(TuningJob)})
        return _rejoined, (_without_live(plain), self.call)


def _staying(job: TuningJob, call: int) -> StayingJob:
    keep(job, call)
    values = {item.name: getattr(job, item.name) for item in fields(TuningJob)}
    return StayingJob(**{**values, "isolation": "none"}, call=call)


def keep(job: TuningJob, call: int) -> None:
    """Have this rank's own objects ready, should rank 0's not be able to travel."""
    _JOBS[call] = job


def forget(call: int) -> None:
    """The ``fit`` is over: its objects need not be kept."""
    _JOBS.pop(call, None)


def _without_live(job: TuningJob) -> TuningJob:
    return replace(
        job,
        calibration=replace(job.calibration, dataloader=None),
        evaluation=replace(job.evaluation, dataloader=None, metrics=(), eval_func=None),
        train=None,
        strategy=replace(job.strategy, kwargs={}),
    )


def _rejoined(job: TuningJob, call: int) -> TuningJob:
    if call not in _JOBS:
        raise TransportError(
            f"rank 0 is at fit number {call} and this rank has not come to it; every rank must run the same script"
        )
    own = _JOBS[call]
    return replace(
        job,
        calibration=replace(job.calibration, dataloader=own.calibration.dataloader),
        evaluation=replace(
            job.evaluation,
            dataloader=own.evaluation.dataloader,
            metrics=own.evaluation.metrics,
            eval_func=own.evaluation.eval_func,
        ),
        train=own.train,
        strategy=replace(job.strategy, kwargs=_kwargs(own)),
    )


def _kwargs(job: TuningJob) -> Mapping[str, Any]:
    return job.strategy.kwargs
