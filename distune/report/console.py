"""The run on the console: progress while it goes on, one table at the end, everything on standard error.

On a terminal a few lines at the bottom move (stage, best so far, what each rank does, what happened last), and what
stays are a line a stage and the warnings. Elsewhere (a log file,
``mpirun``'s pipe) there is one plain line a decision. Nothing is drawn by a thread or a timer: the machine measures
latencies meanwhile.
"""

from __future__ import annotations

import statistics
import sys
from collections import deque
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
from distune.report.changes import Changes
from distune.report.final import final_parts
from distune.report.result import RunResult
from distune.strategies.stage import Trial

_PLAIN_WIDTH = 120
"""Columns of the final table where there is no terminal."""

_LATELY = 3
"""Last events that a terminal shows."""

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
        self._now = ""
        self._lately: deque[Text] = deque(maxlen=_LATELY)
        self._activity = ""
        self._busy = self._ranks = 0
        self._left: int | None = None
        self._durations: list[float] = []
        self._changes = Changes()

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
        elif not self._quiet and self._follow(event):
            self._draw()

    def show(self, result: RunResult, workspace: Path, *, reported: bool = True) -> None:
        """The final table. Call it when the files are written.

        Args:
            workspace: The run's folder.
            reported: This run has written ``report.html`` there.
        """
        self.close()
        for part in final_parts(result, workspace, reported=reported):
            self._console.print()
            self._console.print(part)

    # ---------------------------------------------------------------------------------------------------- the events

    def _follow(self, event: events.RunEvent) -> bool:
        """Take ``event`` in; false where nothing that moves need be drawn anew."""
        match event:
            case events.RunStarted():
                self._ranks = len(event.workers)
                self._say(words.headline(event))
            case events.SpaceBuilt():
                self._changes.use(event.space)
                self._say(words.space_sentence(event))
            case events.BaselineKnown():
                self._target = event.target
                self._changes.baseline(event.accuracy, event.higher_is_better)
                self._say(words.baseline_sentence(event))
            case events.CalibrationStarted():
                self._now = f"calibrating with {event.samples} samples"
            case events.CalibrationDone():
                self._now = ""
                self._say(f"calibrated with {event.samples} samples in {words.duration(event.seconds)}")
            case events.StageStarted():
                self._stage, self._index, self._total, self._left = event.name, 0, event.total, event.remaining
                self._lately.clear()
                self._changes.start_stage(self._best)
            case events.TrialDecided():
                self._decided(event)
            case events.LatencyMeasured():
                self._measured(event)
            case events.StageEnded():
                self._ended(event)
            case events.WorkersBusy():
                before, self._busy, self._ranks = self._busy, len(event.doing), len(event.ranks)
                self._activity = words.activity(event)
                return self._busy >= before  # what came back is drawn with the work that follows or what is decided
        return True

    def _decided(self, event: events.TrialDecided) -> None:
        trial = event.trial
        self._index, self._total, self._best = event.index + 1, event.total, event.best
        if not event.again:
            self._left = None if self._left is None else max(0, self._left - 1)
            if trial.end_s > trial.start_s:
                self._durations.append(trial.end_s - trial.start_s)
        change = self._changes.sentence(trial)
        change = "" if change == self._stage else change
        where = Text(
            f"{self._position()}  {change}".rstrip() if self._terminal else f"{self._stage} {self._position()}"
        )
        line = where.append(f"  {words.trial_sentence(trial)}")
        if trial.verdict != "failed":
            shown = self._target is not None and not self._terminal  # a terminal has it above
            line.append(f" (target {words.accuracy(self._target)})" if shown else "")
            line.append("  " + trial.verdict.replace("_", " "), style=_STYLES[trial.verdict])
        if change and not self._terminal:
            line.append(f"  {change}", style="dim")
        line.append("  known" if event.again else "", style="dim")
        self._happened(line)

    def _measured(self, event: events.LatencyMeasured) -> None:
        self._happened(Text(words.latency_sentence(event)))

    def _happened(self, line: Text) -> None:
        """Of the last events a terminal shows some while they are the last; elsewhere each is a line that stays."""
        self._lately.append(line)
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
        self._stage = ""
        self._lately.clear()
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

    def _moving(self) -> Group:
        parts: list[Table | Text] = []
        if self._stage:
            grid = Table.grid(padding=(0, 2))
            for _ in range(4):
                grid.add_column(no_wrap=True, overflow="ellipsis")
            bar = ProgressBar(total=self._total, completed=self._index, width=24) if self._total else Text("")
            grid.add_row(Text(self._stage, style="bold"), bar, self._position(), Text(self._remaining(), style="dim"))
            best = Text(f"best so far {_best_words(self._best)}")
            if self._target is not None:
                best.append(f" (target {words.accuracy(self._target)})")
            best.append(f"  {self._budget()}", style="dim")
            parts += [grid, best]
        now = "; ".join(filter(None, (self._now, self._activity if self._ranks > 1 or not self._now else "")))
        parts += [Text(now, style="cyan"), *self._lately]
        for line in parts:
            if isinstance(line, Text):
                line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*parts, Text())  # mpirun keeps a last line back until it ends: it is an empty one

    def _position(self) -> str:
        return f"{self._index}/{self._total}" if self._total else f"{self._index}"

    def _remaining(self) -> str:
        """How long the stage may take still, from the median trial and the number of ranks."""
        if not self._durations or not self._total or self._index >= self._total:
            return ""
        return f"about {self._time_of(self._total - self._index)} left"

    def _budget(self) -> str:
        """How long the run may take still. What will meet nobody knows; that the budget ends it is all that is sure."""
        return f"budget: {self._left} trials, {self._time_of(self._left)}" if self._durations and self._left else ""

    def _time_of(self, trials: int) -> str:
        rounds = -(-trials // max(1, self._ranks))
        return words.duration(rounds * statistics.median(self._durations))


def _best_words(trial: Trial | None) -> str:
    return "-" if trial is None else words.accuracy(trial.accuracy, trial.accuracy_low, trial.accuracy_high)
