"""A script with ``fit`` in it under a real mpirun: rank 0 leads, and every rank has the same in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distune.distributed.launcher import launcher_environment, mpirun_command
from tests.distributed.mpirun import LAUNCHER, ROOT, needs_mpirun

pytestmark = [needs_mpirun, pytest.mark.mpi]
RANKS = 3


def run_script(folder: Path, *options: str) -> tuple[int, dict[str, dict[int, Any]], str]:
    """Exit code, what each rank said by name, and standard error."""
    command = [sys.executable, str(Path(__file__).with_name("script.py")), str(folder), *options]
    done = subprocess.run(
        mpirun_command(RANKS, command, LAUNCHER),
        env=launcher_environment(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    said: dict[str, dict[int, Any]] = {}
    for line in done.stdout.splitlines():
        if not line.startswith("["):  # MPICH's launcher says on standard output, too, that a rank has died
            continue
        rank, what, value = json.loads(line)
        said.setdefault(what, {}).setdefault(rank, []).append(value)
    return done.returncode, said, done.stderr


def test_every_rank_gets_the_same_result_and_the_same_errors(tmp_path: Path) -> None:
    code, said, err = run_script(tmp_path)
    assert code == 0, err
    ((outcome, accuracy, ranks, has_model, accepted),) = said["first"][0]
    assert (outcome, ranks, has_model, accepted) == ("met", RANKS, True, True)
    assert [said["first"][rank] for rank in (1, 2)] == [[[outcome, accuracy, RANKS, False, True]]] * 2
    assert said["saved"] == {0: [1], 1: [0], 2: [0]}
    assert said["second"][0] == said["second"][1] == said["second"][2]
    assert said["second"][0][0][2] is True
    errors = [["UserCodeError", True], ["UsageError", False]]
    assert said["error"] == dict.fromkeys(range(RANKS), errors)
    assert list(tmp_path.glob("judged-on-*"))
    assert "trials run in this process" in err


def test_an_error_of_the_script_on_rank_0_ends_all_ranks(tmp_path: Path) -> None:
    code, _, err = run_script(tmp_path, "--raise-on-0")
    assert code != 0
    assert "between two fits" in err
