"""``trials.csv``: every judged trial, one line each, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from distune.report.result import TrialEntry

COLUMNS = (
    *("id", "stage", "label", "config_hash", "verdict", "accuracy", "accuracy_low", "accuracy_high", "samples"),
    *("latency_ratio", "latency_ci_low", "latency_ci_high", "candidate_ms", "baseline_ms", "size_bytes"),
    *("sampling_size", "recipes", "parameters", "metrics", "rank", "host", "start_s", "end_s", "attempts", "reason"),
)


def trials_csv(trials: Sequence[TrialEntry]) -> str:
    """The text of the file; what was not measured is an empty cell, and mappings are JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in trials:
        writer.writerow(_row(trial))
    return text.getvalue()


def _row(trial: TrialEntry) -> list[object]:
    latency = trial.latency
    measured: list[float | None] = [None] * 5
    if latency is not None:
        measured = [latency.ratio, latency.ci_low, latency.ci_high, latency.candidate_ms, latency.baseline_ms]
    return [
        *(trial.id, _cell(trial.stage), _cell(trial.label), trial.config_hash, trial.verdict),
        *(trial.accuracy, trial.accuracy_low, trial.accuracy_high, trial.samples, *measured, trial.size_bytes),
        *(trial.sampling_size, *(_json(value) for value in (trial.recipes, trial.parameters, trial.metrics))),
        *(trial.rank, trial.host, trial.start_s, trial.end_s, trial.attempts, _cell(trial.reason)),
    ]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str) if value else ""


def _cell(text: str) -> str:
    """Text that a spreadsheet will not take for a formula (OWASP, "CSV Injection")."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


__all__ = ["COLUMNS", "trials_csv"]
