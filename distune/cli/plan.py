"""Tell what a run would do: its tuning space, its stages, and a forecast of its time; nothing is tuned."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from distune.cli import configuration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from distune.api.plan import Plan
    from distune.engine.forecast import Forecast
    from distune.space.capability import OpInfo

_RANKS = (1, 2, 4, 8)
_MOST_RANKS = 2048
"""So many take seconds for a small model; the time grows with the square of the ranks."""

_SCENARIOS = {
    "easy": "the first config meets",
    "hard": "a quarter of the op groups must fall back",
    "never": "nothing meets: the budget is spent",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configuration and the numbers of ranks."""
    configuration.add_arguments(parser)
    parser.add_argument("--ranks", type=_counts, default=_RANKS, help="numbers of ranks, e.g. 8 or 1,8,64")


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of ranks such as 8 or 1,8,64, got {text!r}")
    if max(counts) > _MOST_RANKS:
        raise argparse.ArgumentTypeError(
            f"at most {_MOST_RANKS} ranks can be simulated, got {max(counts)}: see from smaller numbers where more "
            "ranks stop to help"
        )
    return counts


def main(arguments: argparse.Namespace) -> int:
    """Print the plan on standard output."""
    from rich.console import Console

    from distune.api.plan import plan

    job = configuration.read(arguments).job()
    found = plan(job, arguments.ranks)
    console = Console(highlight=False)
    _print_space(console, found)
    _print_forecast(console, found)
    return 0


def _print_space(console: Console, found: Plan) -> None:
    from distune.report import words

    space = found.space
    console.print(
        f"{len(space.ops)} ops to tune ({sum(op.has_weight for op in space.ops)} with weights) in "
        f"{words.counted(len(space.groups), 'group')}"
        + (f", {words.counted(len(space.blocks), 'block')}" if space.blocks else ""),
        style="bold",
    )
    by_type: dict[str, list[OpInfo]] = {}
    for op in space.ops:
        by_type.setdefault(op.op_type, []).append(op)
    console.print(
        _table(("op type", "ops", "options", "modes"), [_type_row(kind, ops) for kind, ops in by_type.items()])
    )
    if space.excluded:
        reasons = Counter((kind, reason) for _, kind, reason in space.excluded)
        rows = [(kind, str(count), reason) for (kind, reason), count in reasons.most_common()]
        console.print("\nkept in fp32 for good", style="bold")
        console.print(_table(("op type", "ops", "because"), rows))
    if space.recipes:
        values = [(recipe.name, ", ".join(map(str, recipe.choices))) for recipe in space.recipes]
        console.print("\nrecipes to tune", style="bold")
        console.print(_table(("recipe", "values"), values))
    for name, value in space.fixed_recipes:
        console.print(f"recipe {name} is fixed at {value}")
    for warning in (*found.inspection.warnings, *space.warnings):
        console.print(f"warning: {warning}", style="yellow")


def _type_row(kind: str, ops: Sequence[OpInfo]) -> tuple[str, str, str, str]:
    counts = sorted({len(op.options) for op in ops})
    modes = dict.fromkeys(option.mode for op in ops for option in op.options)
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return kind, str(len(ops)), many, ", ".join(modes)


def _print_forecast(console: Console, found: Plan) -> None:
    from distune.report import words

    took = found.durations
    console.print("\nmeasured here, one thread", style="bold")
    rows = [
        ("load model and data", words.duration(took.startup_s)),
        ("score fp32", words.duration(took.baseline_s)),
        ("quantize and score a config", words.duration(took.quantize_s + took.evaluate_s)),
        ("measure a latency", words.duration(took.latency_s)),
    ]
    console.print(_table((), rows))
    by_scenario: dict[str, list[Forecast]] = {}
    for one in found.forecasts:
        by_scenario.setdefault(one.scenario, []).append(one)
    console.print("\nforecast, if every rank has a core of its own", style="bold")
    first = next(iter(by_scenario.values()))
    head = ("if", "trials", *(words.rank_count(one.ranks) for one in first))
    console.print(_table(head, [_forecast_row(name, ones) for name, ones in by_scenario.items()]))
    longest = next(iter(reversed(by_scenario.values())))[0]
    console.print(f"\nstages, if {_SCENARIOS[longest.scenario]}", style="bold")
    stages = [
        (stage.name, str(stage.judged) if stage.candidates is None else f"{stage.judged} of {stage.candidates}")
        for stage in longest.stages
    ]
    console.print(_table(("stage", "trials"), stages))
    for remark in found.remarks:
        console.print(f"note: {remark}")


def _forecast_row(name: str, ones: Iterable[Forecast]) -> tuple[str, ...]:
    from distune.report import words

    listed = list(ones)
    return _SCENARIOS[name], str(listed[0].trials), *(words.duration(one.seconds) for one in listed)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", show_header=bool(head))
    listed = list(rows)
    for index in range(len(head) or len(listed[0])):
        table.add_column(head[index] if head else "", overflow="fold")
    for row in listed:
        table.add_row(*(Text(cell) for cell in row))
    return table
