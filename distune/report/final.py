"""What stands on the console at the end: outcome, figures, what was kept in floating point, and how to go on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from distune.report import words
from distune.report.result import Best, RunResult

_REASONS_SHOWN = 8
"""Rows of ops kept in floating point that the table shows."""


def final_parts(result: RunResult, workspace: Path, *, reported: bool = True) -> list[Group | Table]:
    """One after the other, with an empty line before each.

    Args:
        workspace: The run's folder.
        reported: This run has written ``report.html`` there.
    """
    style = {"met": "bold green", "not_judged": "bold cyan", "failed": "bold red"}.get(result.outcome, "bold yellow")
    head = [Text(words.verdict_sentence(result), style=style)]
    if result.given_back:
        head.append(Text(f"given back to integers after it was met: {', '.join(result.given_back)}"))
    parts: list[Group | Table] = [Group(*head)]
    if result.baseline is not None:
        parts.append(_figures(result))
    if result.best is not None and result.best.fallback_reasons:
        parts.append(_reasons(result.best))
    return [*parts, _closing(result, workspace, reported)]


def _figures(result: RunResult) -> Table:
    """fp32 beside the best model."""
    baseline, best = result.baseline, result.best
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("fp32", justify="right")
    table.add_column("best effort" if best is not None and best.best_effort else "best", justify="right")
    table.add_column("", style="dim")
    if baseline is None:
        return table
    table.add_row(
        "accuracy",
        words.accuracy(baseline.accuracy),
        words.accuracy(best.accuracy) if best else "-",
        _loss(result),
    )
    latency = best.latency if best else None
    if latency is not None and latency.ratio is not None:
        interval = f"{words.speed(latency)} ({latency.ratio:.3f} [{latency.ci_low:.3f}, {latency.ci_high:.3f}])"
        noisy = ", noisy" if latency.noisy else ""
        note = interval + noisy
    else:
        note = words.speed(None) if best else ""
    table.add_row(
        "latency",
        words.milliseconds(baseline.latency_ms),
        words.milliseconds(latency.candidate_ms if latency else None),
        note,
    )
    ratio = (
        f"{best.size_bytes / baseline.size_bytes:.0%} of fp32"
        if best and best.size_bytes is not None and baseline.size_bytes
        else ""
    )
    table.add_row("size", words.size(baseline.size_bytes), words.size(best.size_bytes if best else None), ratio)
    if best is not None:
        executed = "" if best.ops_executed_int8 is None else f"{best.ops_executed_int8} run on integers"
        table.add_row("ops quantized", "0", f"{best.ops_quantized} of {best.ops_total}", executed)
    return table


def _loss(result: RunResult) -> str:
    """The loss beside what the criterion allows."""
    criterion, baseline, best = result.criterion, result.baseline, result.best
    if criterion is None or criterion.target is None or baseline is None or baseline.accuracy is None:
        return ""
    if best is None or best.accuracy is None:
        return f"target {criterion.target:.4f}"
    loss = baseline.accuracy - best.accuracy if criterion.higher_is_better else best.accuracy - baseline.accuracy
    allowed = abs(baseline.accuracy - criterion.target)
    change = f"loss {loss:.4f}" if loss >= 0 else f"gain {-loss:.4f}"
    return f"{change}, {allowed:.4f} is allowed"


def _reasons(best: Best) -> Table:
    """Ops kept in floating point, and why."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", title=None)
    table.add_column("kept in floating point", overflow="fold")
    table.add_column("because", overflow="fold", style="dim")
    rows = words.kept(best.fallback_reasons)
    for names, reason in rows[:_REASONS_SHOWN]:
        table.add_row(Text(names), Text(reason))
    if len(rows) > _REASONS_SHOWN:
        table.add_row(f"and {len(rows) - _REASONS_SHOWN} more rows", "all of them are in result.json")
    return table


def _closing(result: RunResult, workspace: Path, reported: bool) -> Table:
    """Where the files are and how to go on."""
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    judged = len(result.trials)
    table.add_row(
        "trials", f"{judged} judged in {words.duration(result.timing.total_s)} on {words.rank_count(result.ranks)}"
    )
    if result.lost_ranks:
        table.add_row("lost ranks", ", ".join(map(str, result.lost_ranks)))
    if result.quarantined:
        names = [
            f"config {entry.config_hash}" if entry.trial is None else f"trial {entry.trial}"
            for entry in result.quarantined
        ]
        table.add_row("quarantined", Text(", ".join(names)))
    if result.best is not None:
        table.add_row("model", Text(f"{workspace / 'best'}"))
    table.add_row("result", Text(f"{workspace / 'result.json'}"))
    if reported:
        table.add_row("report", Text(f"{workspace / 'report.html'}"))
    table.add_row("next", Text(words.next_step(result)))
    return table
