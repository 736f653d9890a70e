"""Looks at the tensors of a model after the run: those that the user asked for, or those of the ops that hurt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distune.config.job import TuningJob
from distune.engine.dispatcher import Dispatcher
from distune.engine.failures import reason_of
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Trial
from distune.trial.messages import Diagnose, ProbeAnswer

_HURTING = 6
"""Ops at most that are looked at unasked, the most sensitive ones first."""
_DEFAULT_OPS = 64
"""Ops at most whose distributions a tracker gets unasked."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        trial: The trial whose model was looked at.
        ops: ``{op: {"activation": ..., "weight": ...}}`` in the form of ``backends.diagnosis``.
    """

    trial: Trial
    ops: Mapping[str, Mapping[str, Any]]


def requests(
    job: TuningJob, space: TuningSpace, trials: Sequence[Trial], best: Trial, op_impact: Mapping[str, float]
) -> tuple[Trial, Diagnose] | None:
    """What to look at, and in which trial's model; ``None`` where there is nothing to see.

    Asked for by the user, it is the best model. Unasked it is the first trial's, in which the ops that hurt are still
    quantized, and only where a ranking told which ones hurt.
    """
    spec = job.diagnosis
    known = [op.name for op in space.ops]
    if spec is not None:
        ops = spec.ops or tuple(name for name in known if name in set(best.config.quantized_ops))
        return best, Diagnose(best.config, tuple(ops), spec.batches, spec.tensors)
    if any(tracker.name == "tensorboard" for tracker in job.trackers):
        quantized = tuple(op.name for op in space.ops if op.has_weight and op.name in best.config.quantized_ops)
        return best, Diagnose(best.config, quantized[:_DEFAULT_OPS])
    first = next((trial for trial in trials if trial.verdict in ("met", "not_met")), None)
    hurting = [name for name in sorted(op_impact, key=lambda name: -op_impact[name]) if op_impact[name] > 0]
    if first is None or not hurting:
        return None
    named = tuple(name for name in hurting if name in known and name in first.config.quantized_ops)
    return (first, Diagnose(first.config, named[:_HURTING])) if named else None


def look(dispatcher: Dispatcher, trial: Trial, request: Diagnose) -> Diagnosis | str:
    """Ask a worker; where it cannot tell, why."""
    outcome = dispatcher.wait([dispatcher.submit(request)])[0]
    if isinstance(outcome.body, ProbeAnswer):
        return Diagnosis(trial, outcome.body.data)
    return reason_of(outcome.body)


def unknown_ops(job: TuningJob, space: TuningSpace) -> tuple[str, ...]:
    """Names that the user wants looked at and that the model does not have."""
    known = {op.name for op in space.ops}
    return () if job.diagnosis is None else tuple(name for name in job.diagnosis.ops if name not in known)


__all__ = ["Diagnosis", "look", "requests", "unknown_ops"]
