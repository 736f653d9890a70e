"""A ``RunResult`` out of a journal alone, for a run that was killed before it could write one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distune.config.job import CriterionSpec
from distune.evaluation.criterion import better, target_accuracy
from distune.journal.record import Record
from distune.journal.replay import Known, known_results
from distune.report import words
from distune.report.build import latency_figures
from distune.report.result import (
    SCHEMA_VERSION,
    Baseline,
    Best,
    Criterion,
    Group,
    RunResult,
    StageEntry,
    TimeSpent,
    TrialEntry,
)
from distune.space.op_config import TuningConfig
from distune.trial.messages import Accuracy, Failure, Latency

_FAILURE = "the run did not come to its end; what is told here is what its journal holds. Run it again to resume"


def rebuilt_result(
    records: Sequence[Record],
    held: Sequence[Mapping[str, Any]],
    groups: Mapping[str, str],
    counted: frozenset[str],
    configs: Mapping[int, TuningConfig],
) -> RunResult:
    """The result of what was done so far.

    Args:
        records: All records of the journal.
        held: Its decisions that hold.
        groups: Group of each op, in graph order.
        counted: Ops with weights.
        configs: Tuning config of each trial.
    """
    header = records[0].data
    known = known_results(records)
    spec = CriterionSpec(**header["criterion"])
    baseline = known.get("baseline")
    fp32 = baseline.body.value if baseline is not None and isinstance(baseline.body, Accuracy) else None
    trials = tuple(_trial(decision, configs, known) for decision in held if _is_new_trial(decision, configs))
    ranks = {known_one.meta["rank"] for known_one in known.values() if known_one.meta.get("rank") is not None}
    impact = _impact(held, groups, configs, spec.higher_is_better)
    end = max((float(one.meta.get("end_s") or 0.0) for one in known.values()), default=0.0)
    return RunResult(
        schema_version=SCHEMA_VERSION,
        distune_version=str(header.get("distune_version", "")),
        outcome="interrupted",
        failure=_FAILURE,
        strategy={0: "conservative", "auto": "auto"}.get(header["quant_level"], header["strategy"]["name"]),
        seed=int(header["seed"]),
        ranks=len(ranks),
        lost_ranks=(),
        backend=header["model"]["framework"],
        versions={},
        hosts=(),
        session_options={},
        criterion=None
        if header.get("performance_only")
        else Criterion(
            spec.kind, spec.tolerance, spec.higher_is_better, None if fp32 is None else target_accuracy(spec, fp32)
        ),
        baseline=None
        if baseline is None or not isinstance(baseline.body, Accuracy)
        else Baseline(fp32, baseline.body.metrics, None, None),
        best=_best(trials, configs, groups, counted, impact, spec),
        fallback_order=next((tuple(d["order"]) for d in reversed(held) if d.get("kind") == "order"), ()),
        op_impact=impact,
        given_back=next((tuple(d["given_back"]) for d in reversed(held) if d.get("kind") == "refine"), ()),
        groups=_groups(groups),
        pareto=(),
        skipped_candidates=(),
        warnings=(),
        stages=_stages(held, trials),
        trials=trials,
        timing=TimeSpent(
            total_s=end,
            startup_s=None,
            baseline_s=None,
            calibration_s=None,
            quantize_s=None,
            accuracy_s=None,
            inference_s=None,
            compile_s=None,
            latency_s=None,
            idle_s=0.0,
        ),
    )


def _is_new_trial(decision: Mapping[str, Any], configs: Mapping[int, TuningConfig]) -> bool:
    return decision.get("kind") == "trial" and not decision.get("again") and decision["trial"] in configs


def _trial(decision: Mapping[str, Any], configs: Mapping[int, TuningConfig], known: Mapping[str, Known]) -> TrialEntry:
    config = configs[decision["trial"]]
    own = {key: one for key, one in known.items() if key.startswith(f"judge:{config.hash}:")}
    judged = next((one for key, one in own.items() if key.endswith(":deployed")), None)  # judged last, and counts
    judged = judged or next((one for key, one in own.items() if key.endswith(":exact")), next(iter(own.values()), None))
    body = None if judged is None else judged.body
    meta: Mapping[str, Any] = {} if judged is None else judged.meta
    accuracy = body if isinstance(body, Accuracy) else None
    latency = known.get(f"latency:{config.hash}")
    return TrialEntry(
        id=decision["trial"],
        stage=decision["stage"],
        label=decision["label"],
        config_hash=config.hash,
        parameters=dict(config.parameters),
        recipes=dict(config.recipes),
        sampling_size=config.sampling_size or None,
        accuracy=decision["accuracy"],
        accuracy_low=None if accuracy is None else accuracy.low,
        accuracy_high=None if accuracy is None else accuracy.high,
        metrics={} if accuracy is None else accuracy.metrics,
        verdict=decision["verdict"],
        samples=0 if accuracy is None else accuracy.samples,
        latency=latency_figures(latency.body) if latency is not None and isinstance(latency.body, Latency) else None,
        size_bytes=None if accuracy is None else accuracy.size_bytes,
        rank=meta.get("rank"),
        host=str(meta.get("host", "")),
        start_s=float(meta.get("start_s") or 0.0),
        end_s=float(meta.get("end_s") or 0.0),
        attempts=int(meta.get("attempts", 1)),
        reason=body.message if isinstance(body, Failure) else "",
        is_fp32=config.is_fp32,
    )


def _best(
    trials: Sequence[TrialEntry],
    configs: Mapping[int, TuningConfig],
    groups: Mapping[str, str],
    counted: frozenset[str],
    impact: Mapping[str, float | None],
    spec: CriterionSpec,
) -> Best | None:
    """The first trial that met, else the best accuracy so far."""
    best: TrialEntry | None = None
    for trial in trials:
        if trial.accuracy is None or configs[trial.id].is_fp32:
            continue
        if trial.verdict == "met":
            best = trial
            break
        if best is None or best.accuracy is None or better(trial.accuracy, best.accuracy, spec.higher_is_better):
            best = trial
    if best is None:
        return None
    modes = {name: option.mode for name, option in configs[best.id].ops}
    quantized = set(configs[best.id].quantized_ops)
    kept = tuple(name for name in groups if name not in quantized)
    choice = best.stage + (f" ({best.label})" if best.label else "")
    return Best(
        trial=best.id,
        best_effort=best.verdict != "met",
        config_hash=best.config_hash,
        accuracy=best.accuracy,
        samples=best.samples,
        latency=best.latency,
        size_bytes=best.size_bytes,
        footprint_bytes=None,
        ops_total=len(counted),
        ops_quantized=len(quantized & counted),
        ops_executed_int8=None,
        fallback_ops=kept,
        fallback_reasons={
            name: words.kept_because(modes.get(name, "fp32"), impact.get(groups[name]), choice, name, groups[name])
            for name in kept
        },
    )


def _impact(
    held: Sequence[Mapping[str, Any]],
    groups: Mapping[str, str],
    configs: Mapping[int, TuningConfig],
    higher_is_better: bool,
) -> dict[str, float | None]:
    """Gains of the trials that change one group alone, over the trial that differs from them in that group only.

    A ranking stage labels its candidates by group; it may have been killed before it came to an order.
    """
    named = set(groups.values())
    bases: list[tuple[TuningConfig, float]] = []
    impact: dict[str, float | None] = {}
    for decision in held:
        if decision.get("kind") != "trial" or decision["accuracy"] is None or decision["trial"] not in configs:
            continue
        config, accuracy, label = configs[decision["trial"]], decision["accuracy"], decision["label"]
        if label not in named:
            bases.append((config, accuracy))
            continue
        base = next((value for other, value in bases if _changed_groups(other, config, groups) == {label}), None)
        if base is not None:
            impact[label] = accuracy - base if higher_is_better else base - accuracy
    return impact


def _changed_groups(one: TuningConfig, other: TuningConfig, groups: Mapping[str, str]) -> set[str]:
    pairs = zip(one.ops, other.ops, strict=True)
    return {groups.get(name, name) for (name, mine), (_, others) in pairs if mine != others}


def _groups(groups: Mapping[str, str]) -> tuple[Group, ...]:
    members: dict[str, list[str]] = {}
    for name, group in groups.items():
        members.setdefault(group, []).append(name)
    return tuple(Group(name, tuple(ops)) for name, ops in members.items() if len(ops) > 1)


def _stages(held: Sequence[Mapping[str, Any]], trials: Sequence[TrialEntry]) -> tuple[StageEntry, ...]:
    names = dict.fromkeys(str(d["stage"]) for d in held if d.get("kind") in ("trial", "stage"))
    entries = []
    for name in names:
        own = [trial for trial in trials if trial.stage == name]
        judged = sum(d.get("kind") == "trial" and d["stage"] == name for d in held)
        seconds = max((t.end_s for t in own), default=0.0) - min((t.start_s for t in own), default=0.0)
        entries.append(StageEntry(name, "", "", None, judged, seconds, any(t.verdict == "met" for t in own)))
    return tuple(entries)


__all__ = ["rebuilt_result"]
