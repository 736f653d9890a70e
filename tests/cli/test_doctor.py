"""``distune doctor``: what it finds, one line each."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from distune.cli.main import main
from distune.distributed.launcher import launcher_environment, mpirun_command
from tests.cli.jobs import start
from tests.distributed.mpirun import LAUNCHER, needs_mpirun


def test_it_says_what_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    assert found["python"].startswith(platform.python_version())
    assert "usable" in found["cores"]
    assert {"onnxruntime", "[mpi]", "[samplers]", "[sigopt]", "MPI", "sigoptlite"} <= found.keys()
    assert {"threads", "memory", "GPUs", "backends", "mpirun", "ULFM"} <= found.keys()
    assert "onnxruntime" in found["backends"]


@needs_mpirun
@pytest.mark.mpi
def test_under_mpirun_every_rank_is_pinged_and_runs_a_trial() -> None:
    done = start(mpirun_command(3, [sys.executable, "-m", "distune", "doctor"], LAUNCHER), **launcher_environment({}))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    ranks = [line for line in lines if line.startswith("rank ")]
    assert [line.split()[1] for line in ranks] == ["0", "1", "2"]
    assert all("ping" in line for line in ranks[1:])
    assert all("trial in" in line for line in ranks)
    assert "3 of 3 ranks ran the trial: all well" in lines
    assert sum(line.startswith("python ") for line in lines) == 1, "the node is described once"


def test_it_says_how_to_get_sigoptlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    main(["doctor"])
    assert "distune doctor --install sigoptlite" in capsys.readouterr().out


def test_an_interpreter_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["doctor", "--install", "sigoptlite", "--python", str(tmp_path / "none")]) == 2
    assert "cannot be started" in capsys.readouterr().err
