"""A run writes into its workspace and nowhere else."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cli.jobs import environment, judged


def test_nothing_is_written_outside_the_workspace(tmp_path: Path) -> None:
    job = judged(tmp_path / "job", "fc2", isolation="process")
    elsewhere = {name: tmp_path / name for name in ("cwd", "home", "tmp")}
    for folder in elsewhere.values():
        folder.mkdir()
    command = job.command("--quiet")
    before = {path.name for path in job.folder.iterdir()}
    environ = environment(HOME=str(elsewhere["home"]), TMPDIR=str(elsewhere["tmp"]), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        command, env=environ, cwd=elsewhere["cwd"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in job.folder.iterdir()} - before == {"workspace"}
    assert {name: [str(path) for path in folder.rglob("*")] for name, folder in elsewhere.items()} == {
        "cwd": [],
        "home": [],
        "tmp": [],
    }
    files = {"journal.jsonl", "result.json", "report.html", "trials.csv"}
    assert {path.name for path in job.workspace.iterdir()} == {"best", "cache", "log", *files}
