"""Whether two runs decided the same."""

from __future__ import annotations

from pathlib import Path

from distune.journal.journal import read_records
from distune.journal.replay import same_decisions
from distune.report.result import RunResult


def decided(result: RunResult) -> dict[str, object]:
    """What must not depend on the number of ranks."""
    return {
        "outcome": result.outcome,
        "fp32": result.baseline and (result.baseline.accuracy, result.baseline.metrics),
        "winner": result.best and (result.best.trial, result.best.config_hash, result.best.accuracy),
        "kept": result.best and result.best.fallback_ops,
        "order": result.fallback_order,
        "impact": result.op_impact,
        "trials": [
            (trial.id, trial.stage, trial.config_hash, trial.accuracy, trial.verdict) for trial in result.trials
        ],
    }


def assert_same(workspace: Path, other: Path) -> None:
    """Two runs decided the same and came to the same result."""
    journals = [read_records(path / "journal.jsonl") for path in (workspace, other)]
    assert same_decisions(*journals) == []
    results = [RunResult.from_json((path / "result.json").read_text()) for path in (workspace, other)]
    assert decided(results[0]) == decided(results[1])
