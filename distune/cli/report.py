"""Tell of a run from its workspace: HTML, CSV, PNG, and what another setting would have given."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distune.cli import workspace

if TYPE_CHECKING:
    from distune.report.evidence import Evidence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The workspace, what to write, and what to ask."""
    parser.add_argument("workspace", type=Path, help="folder of a run, finished, going on or killed")
    parser.add_argument("--output", type=Path, help="folder for the files (default: the workspace)")
    parser.add_argument("--png", action="store_true", help="also write plots for papers (extra: report)")
    ask = parser.add_argument_group(
        "what if", "answered from the journal; nothing is run and, where one of these is given, nothing is written"
    )
    ask.add_argument("--tolerance", metavar="LOSS", help="another loss to allow, e.g. 0.005 or 0.5%%")
    ask.add_argument("--objective", metavar="NAME", help="another objective, e.g. modelsize or performance")


def main(arguments: argparse.Namespace) -> int:
    """Write the files, or answer the question."""
    evidence = workspace.read(arguments.workspace)
    if arguments.tolerance is not None or arguments.objective is not None:
        from distune.report.whatif import Question, ask

        for sentence in ask(evidence, Question(_loss(arguments.tolerance), arguments.objective)).sentences:
            print(sentence)
        return 0
    for path in _write(evidence, arguments.output or arguments.workspace, arguments.png):
        print(path)
    return 0


def _write(evidence: Evidence, folder: Path, png: bool) -> list[Path]:
    from distune.errors import WorkspaceError
    from distune.journal.files import replace_file
    from distune.report.html.page import render
    from distune.report.plots import write_plots
    from distune.report.trials_csv import trials_csv

    texts = {folder / "report.html": render(evidence), folder / "trials.csv": trials_csv(evidence.result.trials)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            replace_file(path, text)
        return [*texts, *(write_plots(evidence, folder) if png else [])]
    except OSError as error:
        raise WorkspaceError(f"cannot write the report to {folder}: {error.strerror or error}") from error


def _loss(text: str | None) -> float | None:
    from distune.errors import UsageError

    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise UsageError(f"--tolerance {text!r} is not a number; write 0.005 or 0.5%") from error
