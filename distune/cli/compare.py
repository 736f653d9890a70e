"""Put two runs side by side: settings, figures, decisions, and ops that ended differently."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from distune.cli import workspace

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two workspaces."""
    parser.add_argument("first", type=Path, help="folder of a run")
    parser.add_argument("second", type=Path, help="folder of another run")


def main(arguments: argparse.Namespace) -> int:
    """Print the comparison; the exit code is 0 whether or not the runs differ."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from distune.report.comparison import compare

    compared = compare(workspace.read(arguments.first), workspace.read(arguments.second))
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("", str(arguments.first), str(arguments.second)):
        table.add_column(heading, overflow="fold")
    for what, first, second in compared.figures:
        table.add_row(what, Text(first), Text(second, style="" if first == second else "bold"))
    console.print(table)
    for title, lines in (("settings", compared.settings), ("decisions", compared.decisions)):
        console.print(f"\n{title}: " + (f"{len(lines)} differences" if lines else "no difference"), style="bold")
        _some(lines)
    changed = [f"{name}: {first}  ->  {second}" for name, first, second in compared.ops]
    console.print(f"\nops of the best models: {len(changed)} differ", style="bold")
    _some(changed)
    return 0


def _some(lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN]:
        print(f"  {line}")
    if len(lines) > _SHOWN:
        print(f"  and {len(lines) - _SHOWN} more")
