"""Starting under mpirun: the command, the exit code, the signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from distune.distributed.launcher import MpiLauncher, launcher_environment, mpirun_command
from tests.distributed.mpirun import ROOT, needs_mpirun

PROGRAM = (
    "import sys; from distune.distributed.launcher import exec_under_mpi; "
    "sys.exit(exec_under_mpi(3, [sys.executable, '-m', 'tests.distributed.mpi_program', *sys.argv[1:]]))"
)


def launcher(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env=launcher_environment(os.environ) | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_open_mpi_may_not_bind_and_may_oversubscribe() -> None:
    command = mpirun_command(4, ["prog"], MpiLauncher("/x/mpirun", "openmpi", "", ulfm=True))
    assert command == [
        "/x/mpirun",
        "--with-ft",
        "ulfm",
        "--bind-to",
        "none",
        "--map-by",
        "slot:OVERSUBSCRIBE",
        "-n",
        "4",
        "prog",
    ]
    assert "--with-ft" not in mpirun_command(4, ["prog"], MpiLauncher("/x/mpirun", "openmpi", ""))


def test_mpich_gets_nothing_but_the_number_of_ranks() -> None:
    assert mpirun_command(2, ["prog", "a"], MpiLauncher("/m", "mpich", "")) == ["/m", "-n", "2", "prog", "a"]


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_runs_own_and_nothing_is_said_about_it(code: int) -> None:
    with launcher("echo", "", "process", str(code)) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "exit code" not in err.lower()


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_an_orderly_end_in_mid_trial(number: signal.Signals) -> None:
    with launcher("interrupted", "", "process", "75") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (75, '"orderly"\n'), err


@needs_mpirun
@pytest.mark.mpi
def test_a_success_of_mpirun_that_rank_0_did_not_tell_is_none() -> None:
    done = run_launcher("import os; os._exit(0)")
    assert done.returncode == 1
    assert "rank 0 was not heard" in done.stderr


@needs_mpirun
@pytest.mark.mpi
def test_a_killed_rank_0_is_no_success_and_the_way_on_is_said() -> None:
    line = "import os, signal; from distune.distributed.rank0_line import RankEnd; RankEnd(os.environ).listening(); "
    done = run_launcher(line + "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode not in (0, 75)
    assert "run the same command again" in done.stderr


@needs_mpirun
@pytest.mark.mpi
def test_a_second_signal_ends_ranks_that_never_listen() -> None:
    program = "import time; print('up', flush=True); time.sleep(600)"
    with subprocess.Popen(_launching(program), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # the point: the first is held back, and kills nobody
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 75


def run_launcher(program: str) -> subprocess.CompletedProcess[str]:
    """``program`` as the only rank, by the launcher."""
    return subprocess.run(_launching(program), capture_output=True, text=True, timeout=60, check=False)


def _launching(program: str) -> list[str]:
    code = "import sys; from distune.distributed.launcher import exec_under_mpi as run; sys.exit(run(1, sys.argv[1:]))"
    return [sys.executable, "-c", code, sys.executable, "-c", program]
