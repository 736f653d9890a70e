"""SIGKILL in mid-run, to a rank, to its child, to all ranks but one, to rank 0; and Ctrl-C at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from distune.cli.main import main
from distune.distributed.launcher import launcher_environment
from tests.cli.jobs import ROOT, environment, gated, open_gate, running, start
from tests.cli.same import assert_same
from tests.cli.test_mpi import judged_keys, under_mpirun
from tests.distributed.mpirun import needs_mpirun, needs_ulfm

pytestmark = pytest.mark.timeout(300)

MPI = (needs_mpirun, pytest.mark.mpi)
ENVIRONMENT = launcher_environment({})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of the gated job, run by one process."""
    job = gated(tmp_path_factory.mktemp("alone"))
    assert main(job.arguments("--quiet")) == 0
    return job.workspace


def family(process: subprocess.Popen[str]) -> tuple[dict[int, psutil.Process], list[psutil.Process]]:
    """The ranks, by number, and their children."""
    ranks: dict[int, psutil.Process] = {}
    children: list[psutil.Process] = []
    for member in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            command = " ".join(member.cmdline())
            if "child_main" in command:
                children.append(member)
            elif "distune run" in command and (rank := member.environ().get("OMPI_COMM_WORLD_RANK")) is not None:
                ranks[int(rank)] = member
    return ranks, children


Choice = Callable[[dict[int, psutil.Process], list[psutil.Process]], list[psutil.Process]]


def a_worker_rank(ranks: dict[int, psutil.Process], children: list[psutil.Process]) -> list[psutil.Process]:
    return [ranks[random.choice([rank for rank in ranks if rank])]]


def a_child(ranks: dict[int, psutil.Process], children: list[psutil.Process]) -> list[psutil.Process]:
    return [random.choice(children)]


def all_but_rank_0(ranks: dict[int, psutil.Process], children: list[psutil.Process]) -> list[psutil.Process]:
    return [process for rank, process in ranks.items() if rank]


@pytest.mark.parametrize(
    "choose",
    [
        pytest.param(a_worker_rank, marks=[*MPI, needs_ulfm]),
        pytest.param(a_child, marks=[*MPI, pytest.mark.full]),
        pytest.param(all_but_rank_0, marks=[*MPI, needs_ulfm, pytest.mark.full]),
    ],
)
def test_what_is_killed_in_mid_run_changes_no_decision(tmp_path: Path, alone: Path, choose: Choice) -> None:
    job = gated(tmp_path, stop_at=7)
    with running(job, under_mpirun(3, job.command("--quiet")), **ENVIRONMENT) as process:
        ranks, children = family(process)
        victims = choose(ranks, children)
        numbers = tuple(rank for rank, member in sorted(ranks.items()) if member in victims)
        for victim in victims:
            victim.kill()
        open_gate(job)
        told = process.communicate(timeout=200)[1]
        assert process.returncode == 0, told
        assert psutil.wait_procs([*ranks.values(), *children], timeout=10)[1] == [], "nothing outlives it"
    assert_same(alone, job.workspace)
    assert job.result().lost_ranks == numbers
    assert job.result().quarantined == ()


RANK_0_WAITS = """\


def in_turn(model):
    \"\"\"``top1``; once the gate is open, rank 0 waits until the other node has come to judge (30 s at most).\"\"\"
    other = FOLDER / "new child"
    if (FOLDER / "open").exists():
        end = time.monotonic() + 30
        if Path.cwd() != FOLDER:
            other.touch()
        while not other.exists() and time.monotonic() < end:
            time.sleep(0.01)
    return top1(model)
"""


@pytest.mark.full
@needs_ulfm
@pytest.mark.mpi
def test_a_node_that_loses_the_rank_which_received_its_files_judges_as_before(tmp_path: Path, alone: Path) -> None:
    """Ranks 1 and 2 are on a node that has no files; rank 1 gets them and dies, and rank 2 needs a new child."""
    job = gated(tmp_path, stop_at=7)
    score = (tmp_path / "score.py").read_text().replace("Path(__file__).parent", f"Path({str(tmp_path)!r})")
    (tmp_path / "score.py").write_text(score + RANK_0_WAITS)
    (tmp_path / "tmp").mkdir()
    here = "/proc/self/cwd"  # of rank 0 and its child alone: the folder of the job
    job.document["model"]["path"] = f"{here}/model.onnx"
    job.document["quantization"]["calibration"]["dataloader"]["dataset"]["Npz"]["path"] = f"{here}/calib.npz"
    job.document["evaluation"]["accuracy"]["eval_func"] = f"{here}/score.py:in_turn"
    script = 'if [ $OMPI_COMM_WORLD_RANK = 0 ]; then cd "$0"; else cd /; export DISTUNE_HOSTNAME=b; fi; exec "$@"'
    command = under_mpirun(3, ["sh", "-c", script, str(tmp_path), *job.command("--quiet")])
    with running(job, command, TMPDIR=str(tmp_path / "tmp"), **ENVIRONMENT) as process:
        ranks = family(process)[0]
        ranks[1].kill()
        for child in ranks[2].children():
            child.kill()
        open_gate(job)
        told = process.communicate(timeout=200)[1]
        assert process.returncode == 0, told
    assert_same(alone, job.workspace)
    assert job.result().lost_ranks == (1,)
    assert (tmp_path / "new child").exists(), "it judges, too"
    assert list((tmp_path / "tmp").glob("distune-*")) == []


@pytest.mark.full
@needs_mpirun
@pytest.mark.mpi
@pytest.mark.parametrize("how", ["mpirun", "--np"])
def test_after_the_death_of_rank_0_the_same_command_resumes(tmp_path: Path, alone: Path, how: str) -> None:
    job = gated(tmp_path, stop_at=7)
    command = under_mpirun(3, job.command("--quiet")) if how == "mpirun" else job.command("--quiet", "--np", "3")
    with running(job, command, **ENVIRONMENT) as process:
        ranks, children = family(process)
        ranks[0].kill()
        code = process.wait(timeout=60)
        assert psutil.wait_procs([*ranks.values(), *children], timeout=20)[1] == [], "nothing outlives it"
    assert how == "mpirun" or code not in (0, 75)  # with ULFM mpirun itself may end with 0
    before = judged_keys(job.workspace)
    done = start(command, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "its lock is taken over" in done.stderr
    assert judged_keys(job.workspace)[: len(before)] == before
    assert_same(alone, job.workspace)


def test_a_second_run_in_the_same_workspace_is_refused(tmp_path: Path) -> None:
    job = gated(tmp_path, stop_at=2)
    with running(job, job.command("--quiet")) as process:
        second = start(job.command("--quiet"))
        assert second.returncode == 2
        assert f"{process.pid}" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    job = gated(tmp_path, stop_at=2, isolation="none")  # in this rank itself: the first one has to wait for the trial
    with running(job, job.command("--quiet")) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)  # two at once are one
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 75
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.full
def test_an_orderly_end_that_takes_too_long_is_cut_short(tmp_path: Path, alone: Path) -> None:
    job = gated(tmp_path, stop_at=7, isolation="none")
    with running(job, job.command("--quiet")) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 75
    before = judged_keys(job.workspace)
    assert main(job.arguments("--quiet")) == 0
    assert judged_keys(job.workspace)[: len(before)] == before
    assert_same(alone, job.workspace)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_signal_while_it_starts_leaves_no_traceback(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    """From when distune's own code is reached; before that it is Python that is interrupted."""
    job = gated(tmp_path, stop_at=1)
    with subprocess.Popen(
        job.command("--quiet"), env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        while not _catches(process.pid, signal.SIGUSR1):
            assert process.poll() is None
        time.sleep(seconds)
        process.send_signal(number)
        assert process.wait(timeout=60) == 75
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


def test_an_eval_func_that_does_not_end_is_named_with_the_key_of_its_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """About 10 s: the deadline holds for calibration too, which a busy machine must get done in it."""
    job = gated(tmp_path)
    (tmp_path / "score.py").write_text("import time\n\n\ndef top1(model):\n    time.sleep(3600)\n")
    assert main(job.arguments("--quiet", "--set", "tuning.limits.deadline=8")) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "scoring the fp32 model with the eval_func failed" in told
    assert "not done after 8 s; raise tuning.limits.deadline to allow more" in told
