"""Numbers and endings in words, shared by the console and the reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from distune import __version__
from distune.config.job import CriterionSpec
from distune.engine import events
from distune.report.result import Best, LatencyFigures, RunResult
from distune.strategies.stage import Trial
from distune.trial import messages as m

WITH_GROUP = " together with its group "
"""Stands in the reason why an op is kept in floating point before the name of the op whose group it belongs to."""

_OPS_NAMED = 3
"""Ops with one reason that are named; where there are more they are counted."""

_RANKS_LISTED = 8
"""So many ranks are named with what they do; more are counted."""


def accuracy(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """An accuracy, or the bounds that an early verdict left it in; ``-`` where it is not known."""
    if low is not None and high is not None and low < high:
        return f"{low:.4f}..{high:.4f}"
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def size(value: int | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "-"
    number = float(value)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def milliseconds(value: float | None) -> str:
    """A latency."""
    return "-" if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def duration(seconds: float) -> str:
    """A length of time, as exact as a person needs it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def speed(latency: LatencyFigures | None) -> str:
    """What a latency ratio means: ``1.9x faster``, ``fp32 is 1.1x faster``; its interval must leave no doubt."""
    if latency is None or latency.ratio is None or latency.ci_low is None or latency.ci_high is None:
        return "latency was not measured"
    if latency.ci_high < 1:
        return f"{1 / latency.ratio:.2g}x faster than fp32" if latency.ratio < 0.95 else "slightly faster than fp32"
    if latency.ci_low > 1:
        return f"fp32 is {latency.ratio:.2g}x faster" if latency.ratio > 1.05 else "fp32 is slightly faster"
    return "as fast as fp32"


def headline(event: events.RunStarted) -> str:
    """What is tuned, how and where."""
    job = event.job
    model = job.model.name or Path(job.model.path).name or "model"
    hosts = sorted({worker.host for worker in event.workers})
    ranks = rank_count(len(event.workers))
    places = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
    strategy = {0: "conservative", "auto": "auto"}.get(job.quant_level, job.strategy.name)
    parts = [model, job.model.framework, job.approach, strategy]
    if job.evaluation.can_judge and not job.exit_policy.performance_only:
        parts.append(_criterion(job.criterion))
    return f"distune {__version__}: {', '.join(parts)}; {ranks} on {places}"


def _criterion(criterion: CriterionSpec) -> str:
    if criterion.kind == "threshold":
        return f"at {'least' if criterion.higher_is_better else 'most'} {criterion.tolerance:.4g}"
    return f"{criterion.tolerance:.4g} {criterion.kind} loss"


def counted(count: int, noun: str) -> str:
    """``1 thread``, ``4 threads``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def rank_count(count: int) -> str:
    """``1 rank``, ``4 ranks``."""
    return counted(count, "rank")


def trial_sentence(trial: Trial) -> str:
    """What came of a trial."""
    if trial.verdict == "failed":
        return f"failed: {trial.reason}"
    return f"accuracy {accuracy(trial.accuracy, trial.accuracy_low, trial.accuracy_high)}"


def space_sentence(event: events.SpaceBuilt) -> str:
    """How large the tuning space is."""
    resumed = f", {event.resumed} results known from the journal" if event.resumed else ""
    return f"{len(event.space.ops)} ops to tune in {len(event.space.groups)} groups{resumed}"


def baseline_sentence(event: events.BaselineKnown) -> str:
    """The fp32 model's accuracy and the target."""
    side = "at least" if event.higher_is_better else "at most"
    samples = f" on {event.samples} samples" if event.samples else ""  # a function of the user's does not tell
    together = f" of {event.ranks} ranks together" if event.ranks > 1 else ""
    return (
        f"fp32 accuracy {event.accuracy:.4f}{samples} in {duration(event.seconds)}{together}; "
        f"the target is {side} {event.target:.4f}"
    )


def latency_sentence(event: events.LatencyMeasured) -> str:
    """A trial's latency with its interval."""
    latency = event.latency
    noisy = ", noisy" if latency.noisy else ""
    interval = f"[{latency.ci_low:.3f}, {latency.ci_high:.3f}{noisy}]"
    return f"trial {event.trial.id}: latency {latency.ratio:.3f} x fp32 {interval}"


def activity(event: events.WorkersBusy) -> str:
    """What each rank does; counted where there are many."""
    doing: dict[str, list[int]] = {}
    for rank in event.ranks:
        what = m.DOING[type(event.doing[rank])] if rank in event.doing else "idle"
        doing.setdefault(what, []).append(rank)
    if len(event.ranks) > _RANKS_LISTED:
        return "; ".join(f"{rank_count(len(ranks))} {what}" for what, ranks in doing.items())
    return "; ".join(
        f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} {what}" for what, ranks in doing.items()
    )


def kept_because(mode: str, gain: float | None, choice: str, name: str, group: str) -> str:
    """Why an op is kept in floating point.

    Args:
        mode: ``fp32``, ``bf16`` or ``fp16``.
        gain: What its group gained alone in floating point; ``None`` where that is not known.
        choice: Stage, and label, of the trial that is kept.
    """
    with_group = "" if group == name else f"{WITH_GROUP}{group}"
    if gain is None:
        return f"{mode} by the choice of stage {choice}{with_group}"
    effect = f"improves accuracy by {gain:.4g}" if gain > 0 else f"changes accuracy by {-abs(gain):.4g}"
    return f"alone in {mode} it {effect}{with_group}"


def kept(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Ops kept in floating point and why, those with one reason in one row, an op's group behind it.

    Args:
        reasons: By op, as ``Best.fallback_reasons``.
    """
    ops: dict[str, list[str]] = {}
    members: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        because, with_group, group = reason.partition(WITH_GROUP)
        ops.setdefault(because, [])
        if with_group and reasons.get(group) == because:
            members.setdefault(group, []).append(name)
        else:
            ops[because].append(name)
    return [(_row_name(names, members), because) for because, names in ops.items() if names]


def _row_name(names: list[str], members: Mapping[str, list[str]]) -> str:
    count = len(names) + sum(len(members.get(name, ())) for name in names)
    if len(names) > _OPS_NAMED:
        return f"{count} ops: {', '.join(names[:_OPS_NAMED])}, ..."
    groups = [f" with {counted(len(members[name]), 'op')}" if name in members else "" for name in names]
    return ", ".join(map(str.__add__, names, groups))


def origin(event: events.Warned) -> str:
    """Where a warning comes from: ``rank 3 on node2``; empty where it is not a worker's."""
    if event.rank is None:
        return ""
    return f"rank {event.rank}" + (f" on {event.host}" if event.host else "")


def verdict_sentence(result: RunResult) -> str:
    """The outcome in one sentence."""
    best = result.best
    match result.outcome:
        case "met" if best is not None:
            return f"met: the accuracy is kept, and the model is {_speed_clause(best)}"
        case "met":
            return "met"
        case "not_met" | "budget_spent" if failure := _failure_of_all(result):
            return f"not met: every trial failed, the first of them with: {failure}"
        case "not_met":
            return "not met: nothing in the tuning space keeps the accuracy" + _effort(best)
        case "budget_spent":
            return "not met before the budget was spent" + _effort(best)
        case "interrupted":
            return f"interrupted: {result.failure or 'asked to stop'}"
        case "failed":
            return f"failed: {result.failure or 'see the warnings'}"
        case "not_judged":
            return "not judged: no way to evaluate was given, so the model was quantized once"


def next_step(result: RunResult) -> str:
    """How to go on from here."""
    match result.outcome:
        case "met" if result.best is not None and _fp32_is_faster(result.best):
            return "fp32 is the faster model on this machine; keep it unless size is what counts"
        case "met":
            return (
                "deploy the model in best/; `distune export` makes it again from best/tuning_config.yaml, without data"
            )
        case "not_met" | "budget_spent" if _failure_of_all(result):
            return "mend what the message names, then run again with --fresh: no quantized model could be judged"
        case "not_met":
            return "allow a larger loss, more op options or another strategy, then run again with --fresh"
        case "budget_spent":
            return "raise tuning.exit_policy.max_trials or timeout and run again: what was judged is not judged again"
        case "interrupted":
            met = [trial.id for trial in result.trials if trial.verdict == "met"]
            found = f"trial {met[0]} meets the criterion already; " if met else ""
            return found + "run the same command again: it resumes, and nothing that finished runs again"
        case "failed":
            return "mend what the message names and run the same command again: it resumes"
        case "not_judged":
            return "give evaluation.accuracy a dataloader and a metric, or an eval_func, to have the accuracy kept"


def _failure_of_all(result: RunResult) -> str:
    """Why the first trial failed where all did; empty where one could be judged. fp32 as a trial says nothing."""
    trials = [trial for trial in result.trials if not trial.is_fp32]
    failed = bool(trials) and all(trial.verdict == "failed" for trial in trials)
    return (trials[0].reason or "no reason was told") if failed else ""


def _fp32_is_faster(best: Best) -> bool:
    return best.latency is not None and best.latency.ci_low is not None and best.latency.ci_low > 1


def _speed_clause(best: Best) -> str:
    words = speed(best.latency)
    if best.latency is None:
        return f"quantized ({words})"
    return f"quantized, but {words}" if _fp32_is_faster(best) else words


def _effort(best: Best | None) -> str:
    return "" if best is None else "; best/ holds the best effort"
