"""The scripts of ``launch/slurm`` are what the verb writes, and clean."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from distune.cli.slurm_script import BatchScript
from tests.launch.slurm_scripts import FOLDER, SCRIPTS


def test_there_is_no_script_besides() -> None:
    assert {path.name for path in FOLDER.glob("*.sbatch")} == set(SCRIPTS)


@pytest.mark.parametrize(("name", "script"), SCRIPTS.items(), ids=SCRIPTS)
def test_they_are_what_the_verb_writes(name: str, script: BatchScript) -> None:
    assert (FOLDER / name).read_text() == script.text(), "write them anew: python -m tests.launch.slurm_scripts"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_linter_of_shell_scripts_finds_nothing(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (.ci/run installs it)")
    subprocess.run(["shellcheck", FOLDER / name], check=True)
