"""Writes what a run leaves behind: ``result.json`` and ``best/``."""

from __future__ import annotations

from distune.engine.outcome import RunOutcome
from distune.journal.workspace import Workspace
from distune.report.build import result_of
from distune.report.result import RunResult
from distune.report.tuning_config import SavedConfig


def write_outcome(outcome: RunOutcome, workspace: Workspace) -> RunResult:
    """Write the files of a run, whatever its ending; ``best/`` only where there is a model.

    Raises:
        WorkspaceError: They cannot be written; what was there before is untouched.
    """
    if outcome.exported is not None and outcome.best is not None:
        model = outcome.job.model
        saved = SavedConfig(model.framework, model.quant_format, outcome.best.config, outcome.exported.deploy)
        workspace.write_best({**outcome.exported.files, "tuning_config.yaml": saved.dump()})
    result = result_of(outcome)
    workspace.write_result(result.to_json())
    return result
