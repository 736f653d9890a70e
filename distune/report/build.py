"""``RunResult`` out of what the engine hands over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from distune import __version__
from distune.config.job import ObjectiveSpec
from distune.distributed.transport import WorkerInfo
from distune.engine.outcome import RunOutcome
from distune.report import words
from distune.report.result import (
    SCHEMA_VERSION,
    Baseline,
    Best,
    Criterion,
    Group,
    Host,
    LatencyFigures,
    ParetoPoint,
    QuarantineEntry,
    RunResult,
    StageEntry,
    TimeSpent,
    TrialEntry,
)
from distune.space.capability import OpInfo
from distune.strategies.stage import Trial
from distune.trial.messages import Latency


def result_of(outcome: RunOutcome) -> RunResult:
    """The content of ``result.json`` for the outcome of a run, whatever its ending."""
    job, inspection, space = outcome.job, outcome.inspection, outcome.space
    return RunResult(
        schema_version=SCHEMA_VERSION,
        distune_version=__version__,
        outcome=outcome.outcome,
        failure=outcome.failure,
        strategy={0: "conservative", "auto": "auto"}.get(job.quant_level, job.strategy.name),
        seed=job.seed,
        ranks=outcome.ranks,
        lost_ranks=tuple(sorted(outcome.lost_ranks)),
        backend=job.model.framework,
        versions={} if inspection is None else inspection.versions,
        hosts=_hosts(outcome.workers),
        session_options={} if inspection is None else inspection.session_options,
        criterion=_criterion(outcome),
        baseline=_baseline(outcome),
        best=_best(outcome),
        fallback_order=outcome.fallback_order,
        op_impact=outcome.op_impact,
        given_back=outcome.given_back,
        groups=() if space is None else tuple(Group(name, ops) for name, ops in space.groups.items() if len(ops) > 1),
        pareto=pareto_of_objectives(outcome.trials, job.objectives)
        if len([metric for metric in job.metrics if metric.strategy == "optimize"]) > 1
        else pareto_front(outcome.trials, job.criterion.higher_is_better),
        skipped_candidates=outcome.skipped,
        warnings=outcome.warnings,
        stages=tuple(
            StageEntry(stage.name, stage.exit, stage.use, stage.candidates, stage.judged, stage.seconds, stage.met)
            for stage in outcome.stages
        ),
        trials=tuple(trial_entry(trial) for trial in outcome.trials),
        timing=_timing(outcome),
        quarantined=tuple(_quarantined(outcome)),
    )


def _quarantined(outcome: RunOutcome) -> Iterator[QuarantineEntry]:
    trials = {trial.config.hash: trial for trial in outcome.trials}
    for entry in outcome.quarantined:
        trial = trials.get(entry.config_hash)
        number, label = (None, "") if trial is None else (trial.id, trial.label)
        yield QuarantineEntry(entry.config_hash, number, label, entry.work, entry.failure.message)


def trial_entry(trial: Trial) -> TrialEntry:
    """A trial as ``result.json`` tells it."""
    return TrialEntry(
        id=trial.id,
        stage=trial.stage,
        label=trial.label,
        config_hash=trial.config.hash,
        parameters=dict(trial.config.parameters),
        recipes=dict(trial.config.recipes),
        sampling_size=trial.config.sampling_size or None,
        accuracy=trial.accuracy,
        accuracy_low=trial.accuracy if trial.accuracy_low is None else trial.accuracy_low,
        accuracy_high=trial.accuracy if trial.accuracy_high is None else trial.accuracy_high,
        metrics=trial.metrics,
        verdict=trial.verdict,
        samples=trial.samples,
        latency=latency_figures(trial.latency),
        size_bytes=trial.size_bytes,
        rank=trial.rank,
        host=trial.host,
        start_s=trial.start_s,
        end_s=trial.end_s,
        attempts=trial.attempts,
        reason=trial.reason,
        is_fp32=trial.config.is_fp32,
    )


def latency_figures(latency: Latency | None) -> LatencyFigures | None:
    """A measured latency as ``result.json`` tells it."""
    if latency is None:
        return None
    return LatencyFigures(
        latency.ratio,
        latency.ci_low,
        latency.ci_high,
        latency.candidate_ms,
        latency.baseline_ms,
        latency.batch_size,
        latency.threads,
        latency.host,
        latency.noisy,
    )


def pareto_front(trials: Sequence[Trial], higher_is_better: bool) -> tuple[ParetoPoint, ...]:
    """Trials that no other one beats in accuracy, latency and size at once, fastest first.

    Trials without a measured latency are left out: nothing can be said of them.
    """
    sign = -1.0 if higher_is_better else 1.0
    measured = [
        (
            (
                sign * trial.accuracy,
                trial.latency.ratio,
                math.inf if trial.size_bytes is None else float(trial.size_bytes),
            ),
            trial,
        )
        for trial in trials
        if trial.accuracy is not None and trial.accuracy == trial.accuracy and trial.latency is not None
    ]
    front = [
        ParetoPoint(trial.id, trial.accuracy, trial.latency.ratio, trial.size_bytes, trial.verdict)
        for cost, trial in measured
        if trial.accuracy is not None and trial.latency is not None and not any(_beats(o, cost) for o, _ in measured)
    ]
    return tuple(sorted(front, key=lambda point: (point.latency_ratio, point.trial)))


def pareto_of_objectives(trials: Sequence[Trial], objectives: Sequence[ObjectiveSpec]) -> tuple[ParetoPoint, ...]:
    """Trials that meet and that no other one that meets beats in all objectives at once, by id."""
    costs: list[tuple[tuple[float, ...], Trial]] = []
    for trial in trials:
        found = [cost for objective in objectives if (cost := _cost(trial, objective)) is not None]
        if trial.met and len(found) == len(objectives):
            costs.append((tuple(found), trial))
    return tuple(
        ParetoPoint(
            trial.id,
            trial.accuracy,
            None if trial.latency is None else trial.latency.ratio,
            trial.size_bytes,
            trial.verdict,
            {name: trial.metrics[name] for name in (objective.metric for objective in objectives) if name},
        )
        for cost, trial in costs
        if trial.accuracy is not None and not any(_beats(other, cost) for other, _ in costs)
    )


def _cost(trial: Trial, objective: ObjectiveSpec) -> float | None:
    """What an objective minimises; ``None`` where it was not measured."""
    if objective.name == "performance":
        return None if trial.latency is None else trial.latency.ratio
    if objective.name == "metric":
        value = trial.metrics.get(objective.metric)
        return value if value is None or not objective.higher_is_better else -value
    return trial.size_bytes if objective.name == "modelsize" else trial.footprint_ratio


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _hosts(workers: Sequence[WorkerInfo]) -> tuple[Host, ...]:
    first = {worker.host: worker for worker in reversed(workers)}
    return tuple(Host(worker.host, worker.cpu, worker.isa) for worker in reversed(first.values()))


def _criterion(outcome: RunOutcome) -> Criterion | None:
    if outcome.outcome == "not_judged":
        return None
    spec = outcome.job.criterion
    return Criterion(spec.kind, spec.tolerance, spec.higher_is_better, outcome.target)


def _baseline(outcome: RunOutcome) -> Baseline | None:
    if outcome.inspection is None:
        return None
    latency = None if outcome.best is None else outcome.best.latency
    return Baseline(
        accuracy=None if outcome.baseline is None else outcome.baseline.value,
        metrics={} if outcome.baseline is None else outcome.baseline.metrics,
        latency_ms=None if latency is None else latency.baseline_ms,
        size_bytes=outcome.inspection.size_bytes,
    )


def _best(outcome: RunOutcome) -> Best | None:
    trial, space, exported = outcome.best, outcome.space, outcome.exported
    if trial is None or space is None:
        return None
    weighted = [op.name for op in space.ops if op.has_weight]
    quantized = set(trial.config.quantized_ops)
    executed = trial.ops_executed_int8
    if exported is not None and exported.ops_executed_int8 is not None:
        executed = exported.ops_executed_int8
    able = set() if outcome.inspection is None else _quantizable(outcome.inspection.capability.ops)
    fallback = tuple(op.name for op in space.ops if op.name in able and op.name not in quantized)
    return Best(
        trial=trial.id,
        best_effort=trial.verdict not in ("met", "not_judged"),
        config_hash=trial.config.hash,
        accuracy=trial.accuracy,
        samples=trial.samples,
        latency=latency_figures(trial.latency),
        size_bytes=trial.size_bytes,
        footprint_bytes=trial.footprint_bytes,
        ops_total=len(weighted),
        ops_quantized=sum(name in quantized for name in weighted),
        ops_executed_int8=executed,
        fallback_ops=fallback,
        fallback_reasons={
            **{name: _reason(op, outcome, trial) for op in space.ops if (name := op.name) in fallback},
            **({} if exported is None else exported.reasons),
        },
    )


def _quantizable(ops: Iterable[OpInfo]) -> set[str]:
    return {op.name for op in ops if any(option.is_quantized for option in op.options)}


def _reason(op: OpInfo, outcome: RunOutcome, best: Trial) -> str:
    """Why an op of the best model is kept in floating point, for people."""
    mode = best.config.by_name[op.name].mode
    if not _quantizable([op]):
        return f"your constraints allow no quantized option ({mode})"
    choice = best.stage + (f" ({best.label})" if best.label else "")
    return words.kept_because(mode, outcome.op_impact.get(op.group), choice, op.name, op.group)


def _timing(outcome: RunOutcome) -> TimeSpent:
    """Seconds of the outcome, null for phases that this run did not have."""
    timing, scored = outcome.timing, outcome.baseline is not None
    return TimeSpent(
        total_s=timing.total_s,
        startup_s=timing.startup_s if outcome.inspection is not None else None,
        baseline_s=timing.baseline_s if scored else None,
        calibration_s=timing.calibration_s or None,
        quantize_s=timing.quantize_s or None,
        accuracy_s=timing.accuracy_s or None,
        inference_s=timing.inference_s or None,
        compile_s=timing.compile_s or None,
        latency_s=timing.latency_s or None,
        idle_s=timing.idle_s,
    )
