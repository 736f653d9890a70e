"""Tensors of a run's model beside fp32's: MSE, SQNR, ranges, saturation and histograms of chosen ops."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distune.cli import workspace

if TYPE_CHECKING:
    from rich.table import Table

_BARS = " ▁▂▃▄▅▆▇█"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The workspace and the ops."""
    parser.add_argument("workspace", type=Path, help="folder of a run")
    parser.add_argument("--op", metavar="PATTERN", help="ops whose name matches this regular expression as a whole")


def main(arguments: argparse.Namespace) -> int:
    """Print a table, and the histograms of the ops that were named."""
    from rich.console import Console

    from distune.errors import UsageError

    evidence = workspace.read(arguments.workspace)
    known = [op.name for op in evidence.ops]
    wanted = _matching(arguments.op, known)
    found = {name: evidence.diagnosis[name] for name in wanted if evidence.diagnosis.get(name)}
    if not found:
        what = arguments.op or "any op"
        raise UsageError(
            f"the run kept no tensors of {what}. Run the same command again with "
            f"--set tuning.diagnosis.diagnosis_after_tuning=true --set tuning.diagnosis.inspect_type=all"
            + (f" --set tuning.diagnosis.op_list={','.join(wanted)}" if arguments.op else "")
            + ": nothing that was judged is judged again"
        )
    console = Console(highlight=False)
    console.print(_table(found))
    if arguments.op:
        for name, tensors in found.items():
            for kind, shown in tensors.items():
                console.print(f"\n{name}, {kind}", style="bold")
                for side, counts in (("fp32", "counts"), ("quantized", "quantized_counts")):
                    console.print(f"  {side:<10}{_bars(shown[counts])}")
                edges = shown["edges"]
                console.print(f"  {'':<10}{edges[0]:<.4g}{'':^{max(1, len(shown['counts']) - 16)}}{edges[-1]:>.4g}")
    return 0


def _matching(pattern: str | None, known: list[str]) -> list[str]:
    from distune.config.diagnostics import did_you_mean
    from distune.errors import UsageError

    if pattern is None:
        return known
    try:
        matching = [name for name in known if re.fullmatch(pattern, name)]
    except re.error as error:
        raise UsageError(f"--op {pattern!r} is not a regular expression: {error}") from error
    if not matching:
        raise UsageError(f"no op of the run is named {pattern!r}{did_you_mean(pattern, known)}")
    return matching


def _table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("op", "tensor", "MSE", "SQNR", "saturated", "fp32 range", "quantized range"):
        table.add_column(heading, overflow="fold")
    for name, tensors in found.items():
        for kind, shown in tensors.items():
            if not shown:
                continue
            ratio = shown["sqnr_db"]
            table.add_row(
                Text(name),
                kind,
                f"{shown['mse']:.3g}",
                "-" if ratio is None else f"{ratio:.1f} dB",
                f"{shown['saturation']:.2%}",
                _range(shown["fp32_range"]),
                _range(shown["quantized_range"]),
            )
    return table


def _range(bounds: list[float]) -> str:
    return f"{bounds[0]:.4g} to {bounds[1]:.4g}"


def _bars(counts: list[int]) -> str:
    """Counts as blocks, on a logarithmic scale."""
    import math

    peak = math.log1p(max(counts)) or 1.0
    return "".join(_BARS[math.ceil(math.log1p(count) / peak * (len(_BARS) - 1))] for count in counts)
