"""The run on the console: progress while it goes on, one table at the end, everything on standard error.

On a terminal two lines at the bottom move, and what stays are a line a stage and the warnings. Elsewhere (a log file,
``mpirun``'s pipe) there is one plain line a decision. Nothing is drawn by a thread or a timer: the machine measures
latencies meanwhile.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distune.engine import events
from distune.report import words
from distune.report.result import Best, RunResult
from distune.strategies.stage import Trial

_PLAIN_WIDTH = 120
"""Columns of the final table where there is no terminal."""

_REASONS_SHOWN = 8
"""Ops kept in floating point that the table names; the others are counted."""

_STYLES = {"met": "green", "not_met": "yellow", "failed": "red", "not_judged": "cyan"}


class ConsoleListener(events.Listener):
    """Tells a person how the run goes. Use as a context manager, so that the terminal is left in order.

    Args:
        quiet: Only warnings (and what ``show`` prints).
        stream: Where to write; standard error by default.
        terminal: Whether ``stream`` is a terminal; found out by default.
        terminal_size: Columns and lines of the terminal at the other end, where ``stream`` is a pipe to it.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        terminal: bool | None = None,
        terminal_size: tuple[int, int] | None = None,
    ) -> None:
        stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        columns, lines = terminal_size or (None, None)
        if terminal_size is not None:
            terminal = True
        self._console = Console(
            file=stream, force_terminal=terminal, highlight=False, soft_wrap=False, width=columns, height=lines
        )
        self._terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        if not self._terminal:
            self._console = Console(file=stream, width=_PLAIN_WIDTH, highlight=False, color_system=None)
        self._live: Live | None = None
        self._stage = ""
        self._index = 0
        self._total: int | None = None
        self._target: float | None = None
        self._best: Trial | None = None
        self._last = Text()
        self._busy = self._ranks = 0
        self._durations: list[float] = []

    def __enter__(self) -> ConsoleListener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the moving lines away. May be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on(self, event: events.RunEvent) -> None:
        """Show ``event``."""
        if isinstance(event, events.Warned):
            where = words.origin(event)
            self._say(f"warning{f' ({where})' if where else ''}: {event.message}", "yellow")
        elif isinstance(event, events.RunEnded):
            self.close()
        elif not self._quiet:
            self._follow(event)
            self._draw()

    def show(self, result: RunResult, workspace: Path) -> None:
        """The final table. Call it when the files are written.

        Args:
            workspace: The run's folder.
        """
        self.close()
        style = {"met": "bold green", "not_judged": "bold cyan", "failed": "bold red"}.get(
            result.outcome, "bold yellow"
        )
        self._console.print()
        self._console.print(Text(words.verdict_sentence(result), style=style))
        if result.given_back:
            self._console.print(f"given back to integers after it was met: {', '.join(result.given_back)}")
        parts = [_closing(result, workspace)]
        if result.best is not None and result.best.fallback_reasons:
            parts.insert(0, _reasons(result.best))
        if result.baseline is not None:
            parts.insert(0, _figures(result))
        for part in parts:
            self._console.print()
            self._console.print(part)

    # ---------------------------------------------------------------------------------------------------- the events

    def _follow(self, event: events.RunEvent) -> None:
        match event:
            case events.RunStarted():
                self._ranks = len(event.workers)
                self._say(words.headline(event))
            case events.SpaceBuilt():
                self._say(words.space_sentence(event))
            case events.BaselineKnown():
                self._target = event.target
                self._say(words.baseline_sentence(event))
            case events.CalibrationStarted():
                self._last = Text(f"calibrating with {event.samples} samples")
            case events.CalibrationDone():
                self._last = Text()
                self._say(f"calibrated with {event.samples} samples in {words.duration(event.seconds)}")
            case events.StageStarted():
                self._stage, self._index, self._total, self._last = event.name, 0, event.total, Text()
            case events.TrialDecided():
                self._decided(event)
            case events.LatencyMeasured():
                self._measured(event)
            case events.StageEnded():
                self._ended(event)
            case events.WorkersBusy():
                self._busy, self._ranks = event.busy, event.workers

    def _decided(self, event: events.TrialDecided) -> None:
        trial = event.trial
        self._index, self._total, self._best = event.index + 1, event.total, event.best
        if not event.again and trial.end_s > trial.start_s:
            self._durations.append(trial.end_s - trial.start_s)
        line = Text(f"{self._stage} {self._position()}  {words.trial_sentence(trial)}")
        if trial.verdict != "failed":
            line.append(f" (target {words.accuracy(self._target)})" if self._target is not None else "")
            line.append("  " + trial.verdict.replace("_", " "), style=_STYLES[trial.verdict])
        line.append(f"  {trial.label}" if trial.label else "", style="dim")
        line.append("  known" if event.again else "", style="dim")
        self._last = line
        if not self._terminal:
            self._say(line)

    def _measured(self, event: events.LatencyMeasured) -> None:
        line = words.latency_sentence(event)
        self._last = Text(line)
        if not self._terminal:
            self._say(line)

    def _ended(self, event: events.StageEnded) -> None:
        took = words.duration(event.seconds)
        trials = f"{event.judged} trial{'' if event.judged == 1 else 's'}"
        line = Text(f"{event.name}: ")
        if event.met is not None:
            line.append("met", style="green")
            line.append(
                f" with {words.accuracy(event.met.accuracy)}" + (f" by {event.met.label}" if event.met.label else "")
            )
        elif event.judged:
            line.append("none met" if self._target is not None else "done", style="yellow")
            line.append(f", best so far {_best_words(self._best)}")
        else:
            line.append("done")
        line.append(f"  ({trials}, {took})" if event.judged else f"  ({took})", style="dim")
        self._stage, self._last = "", Text()
        self._say(line)

    # ---------------------------------------------------------------------------------------------------- the drawing

    def _say(self, line: str | Text, style: str = "") -> None:
        """A line that stays."""
        text = Text(line, style=style) if isinstance(line, str) else line
        self._console.print(text, soft_wrap=not self._terminal)

    def _draw(self) -> None:
        """The lines that move; only on a terminal."""
        if not self._terminal:
            return
        if self._live is None:
            # standard output stays what it is: it may be somebody's pipe
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=True
            )
            self._live.start()
        self._live.update(self._moving(), refresh=True)

    def _moving(self) -> Group | Text:
        if not self._stage:
            return self._last
        grid = Table.grid(padding=(0, 2))
        for _ in range(4):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=self._total, completed=self._index, width=24) if self._total else Text("")
        remaining = self._remaining()
        grid.add_row(Text(self._stage, style="bold"), bar, self._position(), Text(remaining, style="dim"))
        state = Text(f"best so far {_best_words(self._best)}")
        if self._target is not None:
            state.append(f" (target {words.accuracy(self._target)})")
        if self._ranks > 1:
            state.append(f"  {self._busy} of {self._ranks} ranks busy", style="dim")
        for line in (state, self._last):
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(grid, state, self._last) if self._last else Group(grid, state)

    def _position(self) -> str:
        return f"{self._index}/{self._total}" if self._total else f"{self._index}"

    def _remaining(self) -> str:
        """How long the stage may take still, at most, from the median trial and the number of ranks."""
        if not self._total or not self._durations or self._index >= self._total:
            return ""
        rounds = -(-(self._total - self._index) // max(1, self._ranks))
        return f"about {words.duration(rounds * statistics.median(self._durations))} left"


def _best_words(trial: Trial | None) -> str:
    return "-" if trial is None else words.accuracy(trial.accuracy, trial.accuracy_low, trial.accuracy_high)


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
    for name, reason in list(best.fallback_reasons.items())[:_REASONS_SHOWN]:
        table.add_row(Text(name), Text(reason))
    hidden = len(best.fallback_reasons) - _REASONS_SHOWN
    if hidden > 0:
        table.add_row(f"and {hidden} more", "all of them are in result.json")
    return table


def _closing(result: RunResult, workspace: Path) -> Table:
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
    table.add_row("report", Text(f"{workspace / 'report.html'}"))
    table.add_row("next", Text(words.next_step(result)))
    return table
