"""What ``docker/`` holds is clean by the linters, never root, and names files that exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
SCRIPTS = [DOCKER / "install", DOCKER / "entrypoint"]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def lint(program: str, *arguments: str | Path) -> None:
    """Fails with what the linter says."""
    path = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if path is None:
        pytest.skip(f"{program} is not installed (extra: test)")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    lint("hadolint", DOCKER / "Dockerfile")


def test_the_linter_of_compose_files_finds_nothing_grave() -> None:
    lint("compose-lint", DOCKER / "compose.yaml")  # less than grave: the image, which is built here, has no digest


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_linter_of_shell_scripts_finds_nothing(script: Path) -> None:
    assert os.access(script, os.X_OK)
    lint("shellcheck", "--external-sources", script)


def test_everything_after_the_packages_is_done_by_an_ordinary_user() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    user = next(index for index, line in enumerate(lines) if line.startswith("USER "))
    assert lines[user] == "USER 1000"
    assert [line for line in lines[user:] if line.startswith("USER ")] == ["USER 1000"]
    root = [line for line in lines[:user] if line.startswith("RUN ")]
    assert len(root) == 1
    assert "docker/install packages" in root[0]


def test_what_the_dockerfile_copies_and_the_compose_file_mounts_exists() -> None:
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert all((REPOSITORY / path).exists() for path in copied)
    for service in COMPOSE["services"].values():
        context = DOCKER / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()
        mounts = [volume.split(":")[0] for volume in service["volumes"]]
        assert all(
            (DOCKER / mount).exists() if mount.startswith(".") else mount in COMPOSE["volumes"] for mount in mounts
        )


def test_the_hostfile_names_the_services() -> None:
    lines = [line for line in (DOCKER / "hostfile").read_text().splitlines() if not line.startswith("#")]
    assert [line.split()[0] for line in lines] == list(COMPOSE["services"])
