"""Writes what a run leaves behind: ``result.json``, ``best/``, ``report.html`` and ``trials.csv``."""

from __future__ import annotations

from distune.engine.outcome import RunOutcome
from distune.journal.files import write_file
from distune.journal.workspace import Workspace
from distune.report.build import result_of
from distune.report.evidence import Evidence
from distune.report.html.page import render
from distune.report.result import RunResult
from distune.report.trials_csv import trials_csv
from distune.report.tuning_config import SavedConfig


def write_outcome(outcome: RunOutcome, workspace: Workspace) -> RunResult:
    """Write the files of a run, whatever its ending; ``best/`` only where there is a model.

    Raises:
        WorkspaceError: They cannot be written; what was there before is untouched.
    """
    if outcome.exported is not None and outcome.best is not None:
        model = outcome.job.model
        saved = SavedConfig(model.framework, model.quant_format, outcome.best.config, outcome.exported.deploy)
        workspace.write_best({**outcome.exported.files, **saved.files()})
    result = result_of(outcome)
    workspace.write_result(result.to_json())
    return result


def write_report(workspace: Workspace) -> None:
    """Write what is told of the run for people, from the files that ``write_outcome`` left.

    Raises:
        WorkspaceError: It cannot be written.
        UsageError: The journal or the result cannot be read back.
    """
    evidence = Evidence.read(workspace.path)
    write_file(workspace.report, render(evidence).encode())
    write_file(workspace.trials_csv, trials_csv(evidence.result.trials).encode())
