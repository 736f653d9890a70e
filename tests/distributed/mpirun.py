"""Starts ``mpi_program`` under a real mpirun."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distune.distributed.launcher import MpiLauncher, find_mpirun, launcher_environment, mpirun_command
from distune.errors import DistuneError

ROOT = Path(__file__).resolve().parents[2]


def mpi_launcher() -> MpiLauncher | None:
    """The mpirun of this environment, ``None`` where there is none, or no mpi4py."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    try:
        return find_mpirun()
    except DistuneError:
        return None


LAUNCHER = mpi_launcher()
needs_mpirun = pytest.mark.skipif(LAUNCHER is None, reason="needs mpi4py and an mpirun")
needs_ulfm = pytest.mark.skipif(LAUNCHER is None or not LAUNCHER.ulfm, reason="needs an Open MPI with ULFM")


@dataclass(frozen=True)
class Done:
    """How a program ended; ``answer`` is the JSON that rank 0 printed, ``None`` where it printed none."""

    code: int
    answer: Any
    err: str


def run_program(
    case: str,
    *,
    ranks: int,
    path: str = "",
    isolation: str = "process",
    exit_code: int = 0,
    environment: dict[str, str] | None = None,
    seconds: float = 90,
) -> Done:
    """Run a case of ``mpi_program``."""
    program = [sys.executable, "-m", "tests.distributed.mpi_program", case, path, isolation, str(exit_code)]
    done = subprocess.run(
        mpirun_command(ranks, program, LAUNCHER),
        env=launcher_environment(os.environ) | {"PYTHONPATH": str(ROOT)} | (environment or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("{", "[", '"'))]
    return Done(done.returncode, json.loads(lines[-1]) if lines else None, done.stderr)
