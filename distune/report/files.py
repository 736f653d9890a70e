"""Writes what a run leaves behind: ``result.json``, ``best/``, ``report.html``, ``trials.csv``, ``diagnosis.json``."""

from __future__ import annotations

import json
from pathlib import Path

from distune.config.job import DiagnosisSpec
from distune.engine.outcome import RunOutcome
from distune.errors import WorkspaceError
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


def write_report(workspace: Workspace, diagnosis: DiagnosisSpec | None = None) -> None:
    """Write what is told of the run for people, from the files that ``write_outcome`` left.

    Args:
        diagnosis: What was asked for; says where ``diagnosis.json`` goes.

    Raises:
        WorkspaceError: It cannot be written.
        UsageError: The journal or the result cannot be read back.
    """
    evidence = Evidence.read(workspace.path)
    write_file(workspace.report, render(evidence).encode())
    write_file(workspace.trials_csv, trials_csv(evidence.result.trials).encode())
    if diagnosis is not None and diagnosis.folder is not None and evidence.diagnosis:
        folder = Path(diagnosis.folder) if diagnosis.folder else workspace.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"tuning.diagnosis.save_path {folder}: {error.strerror or error}") from error
        write_file(folder / "diagnosis.json", (json.dumps(evidence.diagnosis, indent=1) + "\n").encode())
