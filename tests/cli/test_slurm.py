"""``distune slurm``: the script that it writes, and what it refuses. ``tests/cluster`` lets a real Slurm run it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from distune.cli.main import main
from tests.cli.jobs import scripted

TWO_NODES = ("--nodes", "2", "--ntasks-per-node", "8", "--time", "4:00:00")
ONE_NODE = ("--ntasks-per-node", "2", "--time", "30")


def written(folder: Path, *arguments: str) -> str:
    config = scripted(folder, 1.0).config
    assert main(["slurm", str(config), *arguments, "--output", str(folder / "job.sbatch")]) == 0
    return (folder / "job.sbatch").read_text()


def test_the_script_asks_for_what_was_said_and_can_be_requeued(tmp_path: Path) -> None:
    text = written(tmp_path, *TWO_NODES, "--launcher", "srun", "--warn", "60", "--option=--partition=long")
    options = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=2", "--ntasks-per-node=8", "--time=4:00:00", "--partition=long", "--requeue"} <= options
    assert {"--signal=B:USR1@60", "--open-mode=append"} <= options
    assert "srun --mpi=pmix" in text


def test_one_node_is_started_by_np_and_paths_are_absolute_and_quoted(tmp_path: Path) -> None:
    text = written(tmp_path / "with space", *ONE_NODE, "--set", "tuning.strategy.name=mse")
    assert '--np "$SLURM_NTASKS"' in text
    assert f"config='{tmp_path}/with space/cfg.yaml'" in text
    assert "--set tuning.strategy.name=mse" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*ONE_NODE, "--submit"], "sbatch was not found"),
        ([*ONE_NODE, "--set", "tunning.x=1"], "tunning"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    config = scripted(tmp_path, 1.0).config
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["slurm", str(config), *arguments, "--output", str(tmp_path / "job.sbatch")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "job.sbatch").exists()


@pytest.mark.parametrize("time", ["4h", "1:2:3:4", ""])
def test_a_time_that_slurm_would_not_understand_is_refused(tmp_path: Path, time: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["slurm", "cfg.yaml", "--ntasks-per-node", "2", "--time", time])
    assert ended.value.code == 2


def test_only_its_own_scripts_are_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, *ONE_NODE)
    assert "--np" in written(tmp_path, *ONE_NODE), "its own"
    (tmp_path / "job.sbatch").write_text("#!/bin/sh\nrm -rf precious\n")
    assert main(["slurm", str(tmp_path / "cfg.yaml"), *ONE_NODE, "--output", str(tmp_path / "job.sbatch")]) == 2
    assert "--output" in capsys.readouterr().err


def test_submitting_calls_sbatch_on_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/given; echo Submitted batch job 7\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    written(tmp_path, *ONE_NODE, "--submit")
    assert (tmp_path / "given").read_text().strip() == str(tmp_path / "job.sbatch")


@pytest.mark.parametrize(("signals", "code", "requeued"), [(["USR1"], 75, True), (["TERM"], 75, False), ([], 3, False)])
def test_the_shell_hands_signals_on_and_only_asks_for_more_time_when_it_was_up(
    tmp_path: Path, signals: list[str], code: int, requeued: bool
) -> None:
    """The last part of every script, with a stand-in for the run that ends with 75 on USR1, else with 3."""
    text = written(tmp_path, *ONE_NODE)
    run = tmp_path / "run"
    wait = "echo up; read -r _ <&9 & wait" if signals else "exit 3"
    run.write_text(f"#!/usr/bin/env bash\ntrap 'kill $!; exit 75' USR1\nexec 9<>{tmp_path}/never\n{wait}\n")
    run.chmod(0o755)
    os.mkfifo(tmp_path / "never")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    body = "".join(f"command=({run})\n" if line.startswith("command=") else line for line in text.splitlines(True))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    with subprocess.Popen(["bash", "-c", body], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if signals:
            assert process.stdout.readline() == "up\n"
            subprocess.run(["kill", f"-{signals[0]}", str(process.pid)], check=True)
        assert process.wait(20) == code
    assert (tmp_path / "asked").exists() is requeued
