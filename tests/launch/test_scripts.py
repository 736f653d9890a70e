"""The launch scripts: they parse, run from anywhere, and speak plainly where they cannot."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SETUP = REPOSITORY / "launch" / "lib" / "setup.sh"
COMMANDS = [REPOSITORY / "launch" / "quickstart", REPOSITORY / "launch" / "test", REPOSITORY / ".ci" / "run"]
CONSTRAINTS = REPOSITORY / "launch" / "constraints.txt"


@pytest.mark.parametrize("script", [*COMMANDS, SETUP], ids=lambda path: path.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_commands_are_executable_and_stop_at_the_first_error(script: Path) -> None:
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


def _bash(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'source "{SETUP}"; {command}'],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


def test_the_repository_is_found_from_any_folder(tmp_path: Path) -> None:
    assert _bash('echo "$ROOT"', tmp_path).stdout.strip() == str(REPOSITORY)


def test_an_old_python_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\nexit 1\n')
    old.chmod(0o755)
    refused = _bash("find_python", tmp_path, PYTHON=str(old))
    assert refused.returncode == 1
    assert "Python 3.10 or newer is needed" in refused.stderr
    assert "Python 3.9.1" in refused.stderr
    assert "PYTHON=" in refused.stderr


def test_a_python_without_venv_is_refused_with_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text('#!/bin/sh\ncase "$*" in *venv*) exit 1 ;; esac\n')
    bare.chmod(0o755)
    refused = _bash(f'VENV="{tmp_path}/venv"; make_venv', tmp_path, PYTHON=str(bare))
    assert refused.returncode == 1
    assert "python3-venv" in refused.stderr


def test_every_requirement_is_pinned_once() -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+( *; python_version >= "3\.11")?', line) for line in lines)
    pinned = [_name(line) for line in lines]
    assert len(set(pinned)) == len(pinned)
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    groups = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    required = {_name(line) for group in groups for line in group.splitlines() if line and not line.startswith("#")}
    assert not required - set(pinned), "pin what was tested"


def _name(requirement: str) -> str:
    """Distribution name in its normal form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()
