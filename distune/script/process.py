"""One trial of a script: a child process that gets the parameters and leaves its metrics in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distune.config.parameters import Value
from distune.errors import UsageError
from distune.script.context import METRICS_VARIABLE, PARAMETERS_VARIABLE


@dataclass(frozen=True)
class ScriptTrial:
    """What came of a trial: its metrics, or why it failed."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


def command_of(script: str, arguments: Sequence[str], first_metric: str) -> list[str]:
    """The command of a trial: ``script.py`` with its arguments, or the function of ``file.py:function``.

    Raises:
        UsageError: There is no such file.
    """
    file, _, function = script.partition(":")
    if not Path(file).is_file():
        raise UsageError(f"{file}: there is no such script")
    if not function:
        return [sys.executable, file, *arguments]
    return [sys.executable, "-m", "distune.script.function_main", f"{Path(file).resolve()}:{function}", first_metric]


def run_trial(command: Sequence[str], parameters: Mapping[str, Value], wanted: Sequence[str]) -> ScriptTrial:
    """Run the script once and wait for it.

    Args:
        wanted: Metrics that it must log.
    """
    with tempfile.TemporaryDirectory(prefix="distune-trial-") as folder:
        file = Path(folder) / "metrics.jsonl"
        environment = {**os.environ, PARAMETERS_VARIABLE: json.dumps(dict(parameters)), METRICS_VARIABLE: str(file)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    metrics: dict[str, float] = dict(json.loads(line) for line in lines)
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return ScriptTrial(metrics, f"exit code {done.returncode}: {tail[0]}")
    missing = [name for name in wanted if name not in metrics]
    return ScriptTrial(metrics, f"it did not log {', '.join(missing)}" if missing else "")
