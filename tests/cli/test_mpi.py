"""``distune run`` on several ranks, by ``mpirun`` and by ``--np``: same answer, same exit code, resuming."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from distune.cli.main import main
from distune.distributed.launcher import launcher_environment, mpirun_command
from distune.journal.journal import read_records
from distune.report.result import RunResult
from tests.cli.jobs import ROOT, Job, environment, gated, judged, running, scripted, start
from tests.cli.same import assert_same
from tests.distributed.mpirun import LAUNCHER, needs_mpirun

pytestmark = [needs_mpirun, pytest.mark.mpi, pytest.mark.timeout(180)]

FULL = pytest.mark.full

DIGITS = ROOT / "launch" / "examples" / "digits.yaml"


def under_mpirun(ranks: int, command: list[str]) -> list[str]:
    """``command`` as ``ranks`` ranks."""
    return mpirun_command(ranks, command, LAUNCHER)


ENVIRONMENT = launcher_environment({})


def judged_keys(workspace: Path) -> list[str]:
    """The judgings that the journal holds."""
    records = read_records(workspace / "journal.jsonl")
    keys = [record.data["key"] for record in records if record.kind == "result"]
    return [key for key in keys if key.startswith("judge:")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of the gated job, run by one process."""
    job = gated(tmp_path_factory.mktemp("alone"))
    assert main(job.arguments("--quiet")) == 0
    return job.workspace


# ----------------------------------------------------------------------------------------------------- the same answer


@pytest.mark.parametrize(("ranks", "isolation"), [(3, "process"), pytest.param(2, "none", marks=FULL)])
def test_ranks_decide_as_one_process_does(tmp_path: Path, ranks: int, isolation: str) -> None:
    job = judged(tmp_path, "fc2", isolation=isolation)
    assert main(job.arguments("--quiet")) == 0
    other = tmp_path / "together"
    done = start(under_mpirun(ranks, job.command("--quiet", workspace=other)), **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert_same(job.workspace, other)
    result = job.result(other)
    assert (result.ranks, result.lost_ranks) == (ranks, ())
    assert {trial.rank for trial in result.trials} <= set(range(ranks))


def test_np_starts_the_ranks_itself(tmp_path: Path) -> None:
    job = judged(tmp_path, "fc3")
    done = start(job.command("--quiet", "--json", "--np", "3"))
    assert done.returncode == 0, done.stderr
    assert RunResult.from_json(done.stdout) == job.result()
    assert job.result().ranks == 3


@FULL
def test_more_ranks_than_candidates(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.95)
    done = start(job.command("--quiet", "--np", "4"))
    assert done.returncode == 0, done.stderr
    assert [trial.stage for trial in job.result().trials] == ["default"]


@pytest.fixture(scope="module")
def digits_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of the embedded example, run by one process."""
    path = tmp_path_factory.mktemp("digits") / "1"
    assert main(["run", str(DIGITS), "--workspace", str(path), "--quiet"]) == 0
    return path


@FULL
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_embedded_example_comes_out_the_same_for_any_number_of_ranks(
    tmp_path: Path, digits_alone: Path, ranks: int
) -> None:
    command = [*Job(tmp_path, {}).command("--quiet")[:3], "run", str(DIGITS), "--workspace", str(tmp_path), "--quiet"]
    done = start(under_mpirun(ranks, command), seconds=500, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert_same(digits_alone, tmp_path)


# ---------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(("accuracies", "code"), [((1.0, 0.5), 4), pytest.param((1.0, 0.95), 0, marks=FULL)])
def test_all_ranks_leave_with_the_code_of_the_outcome(tmp_path: Path, accuracies: tuple[float, ...], code: int) -> None:
    job = scripted(tmp_path, *accuracies)
    arguments = ("--quiet", "--set", "tuning.exit_policy.max_trials=2")
    script = 'code=0; "$@" || code=$?; echo "rank ${OMPI_COMM_WORLD_RANK:-$PMI_RANK} left with $code"; exit $code'
    done = start(under_mpirun(3, ["sh", "-c", script, "sh", *job.command(*arguments)]), **ENVIRONMENT)
    assert done.returncode == code, done.stderr
    left = {line for line in done.stdout.splitlines() if "left with" in line}
    expected = {f"rank {rank} left with {code}" for rank in range(3)}
    # Once a rank has left with another code than 0, mpirun may drop what the others' shells still say.
    assert left == expected if code == 0 else left and left <= expected


@pytest.mark.parametrize("how", ["mpirun", "--np"])
def test_a_wrong_configuration_is_told_once(tmp_path: Path, how: str) -> None:
    job = scripted(tmp_path, 1.0)
    job.document["tunning"] = {}
    command = under_mpirun(3, job.command()) if how == "mpirun" else job.command("--np", "3")
    done = start(command, **ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr.count("unknown key") == 1
    assert "Traceback" not in done.stderr


@FULL
def test_a_model_that_is_no_model_ends_all_ranks(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0)
    (job.folder / "model.onnx").write_bytes(b"not a model")
    done = start(job.command("--quiet", "--np", "3"))
    assert done.returncode == 2
    assert "model.onnx" in done.stderr


# -------------------------------------------------------------------------------------------------- ended from outside


@pytest.mark.parametrize("resumed_by", ["--np 3", pytest.param("one process", marks=FULL)])
def test_a_job_killed_in_mid_run_goes_on(tmp_path: Path, alone: Path, resumed_by: str) -> None:
    job = gated(tmp_path, stop_at=7)
    with running(job, under_mpirun(3, job.command("--quiet")), **ENVIRONMENT):
        pass
    before = judged_keys(job.workspace)
    more = ("--np", "3") if resumed_by == "--np 3" else ()
    done = start(job.command("--quiet", *more))
    assert done.returncode == 0, done.stderr
    after = judged_keys(job.workspace)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after), "nothing that was finished is judged again"
    assert_same(alone, job.workspace)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=FULL)])
def test_a_signal_to_np_ends_it_in_order_and_it_goes_on(tmp_path: Path, alone: Path, number: signal.Signals) -> None:
    job = gated(tmp_path, stop_at=7)
    with running(job, job.command("--quiet", "--np", "3")) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(timeout=20) == 75
        assert not psutil.wait_procs(family, timeout=5)[1], "nothing outlives it"
    assert (job.result().outcome, job.result().failure) == ("interrupted", f"{number.name} received")
    before = judged_keys(job.workspace)
    done = start(job.command("--quiet", "--np", "3"))
    assert done.returncode == 0, done.stderr
    assert judged_keys(job.workspace)[: len(before)] == before
    assert_same(alone, job.workspace)


@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=FULL)])
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=FULL)])
def test_a_signal_to_np_while_the_ranks_start_is_an_interruption(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    """``processes`` of 1: mpirun is looked for or there; 2: the first rank; 4: all of them."""
    job = judged(tmp_path, "fc2", isolation="process")
    with subprocess.Popen(job.command("--quiet", "--np", "3"), env=environment(), stderr=subprocess.PIPE) as process:
        launcher = psutil.Process(process.pid)
        while len(launcher.children(recursive=True)) < processes:
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=60) == 75
    assert not (job.workspace / "result.json").exists() or job.result().outcome == "interrupted"


def test_np_under_mpirun_is_said_to_have_no_effect(tmp_path: Path) -> None:
    job = scripted(tmp_path, 1.0, 0.95)
    done = start(under_mpirun(2, job.command("--quiet", "--np", "5")), **ENVIRONMENT)
    assert (done.returncode, job.result().ranks) == (0, 2), done.stderr
    assert done.stderr.count("--np 5 has no effect") == 1
