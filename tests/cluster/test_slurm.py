"""``distune slurm`` and what Slurm does to its jobs: time that is up, TERM, requeueing in mid-run, an array."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distune.cli.main import main
from distune.journal.journal import read_records
from distune.report.result import RunResult
from tests.cli.jobs import ROOT, Job, gated, scripted
from tests.cli.same import assert_same
from tests.cluster.daemons import until
from tests.cluster.slurm import Slurm

pytestmark = [pytest.mark.full, pytest.mark.mpi, pytest.mark.timeout(240)]

DIGITS = ROOT / "launch" / "examples" / "digits.yaml"


def write(slurm: Slurm, folder: Path, *arguments: str) -> Path:
    """The script that the verb writes."""
    path = folder / "job.sbatch"
    command = [sys.executable, "-m", "distune", "slurm", *arguments, "--output", str(path), "--time", "10"]
    done = subprocess.run(
        command, cwd=folder, env=environment(slurm), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return path


def environment(slurm: Slurm) -> dict[str, str]:
    # Open MPI refuses root unless told twice; sbatch hands the environment on.
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**slurm.environment, **allowed, "PYTHONPATH": str(ROOT)}


def submit(slurm: Slurm, script: Path) -> str:
    slurm.environment.update(environment(slurm))
    return slurm.submit(script, f"--chdir={script.parent}")


def log(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("*.log"))


def judged_keys(workspace: Path) -> list[str]:
    records = read_records(workspace / "journal.jsonl")
    keys = [record.data["key"] for record in records if record.kind == "result"]
    return [key for key in keys if key.startswith("judge:")]


@contextmanager
def at_the_gate(slurm: Slurm, job: Job, *arguments: str) -> Iterator[str]:
    """A job of Slurm that has come to its gate in mid-run; what it runs later has no gate."""
    folder = job.folder
    script = write(slurm, folder, str(job.config), "--workspace", str(job.workspace), *arguments)
    end = os.open(folder / "there", os.O_RDONLY | os.O_NONBLOCK)
    number = submit(slurm, script)

    def there() -> bool:
        assert slurm.state(number) in ("PENDING", "RUNNING", "CONFIGURING"), log(folder)
        return bool(_read(end))

    until(there, lambda: f"{slurm.state(number)}: {log(folder)}\n{slurm.logs()}")
    os.close(end)
    yield number


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 10)
    except BlockingIOError:
        return b""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of the gated job, run by one process."""
    job = gated(tmp_path_factory.mktemp("alone"))
    assert main(job.arguments("--quiet")) == 0
    return job.workspace


def test_srun_runs_the_embedded_example_on_two_nodes_to_met(slurm: Slurm, tmp_path: Path) -> None:
    options = ("--nodes", "2", "--ntasks-per-node", "2", "--launcher", "srun", "--workspace", str(tmp_path / "w"))
    number = submit(slurm, write(slurm, tmp_path, str(DIGITS), *options))
    state = slurm.await_state(number, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", seconds=220)
    result = RunResult.from_json((tmp_path / "w" / "result.json").read_text())
    assert (state, result.outcome, result.ranks) == ("COMPLETED", "met", 4), log(tmp_path)


def test_a_job_whose_time_is_nearly_up_goes_back_to_the_queue_and_resumes(
    slurm: Slurm, tmp_path: Path, alone: Path
) -> None:
    job = gated(tmp_path, stop_at=7)
    with at_the_gate(slurm, job, "--nodes", "2", "--ntasks-per-node", "2") as number:
        slurm.command("scancel", "--batch", "--signal=USR1", number)  # as Slurm does by itself, at the time asked for
        before = judged_keys(job.workspace)
        until(lambda: "will resume" in log(tmp_path), lambda: f"{slurm.state(number)}: {log(tmp_path)}")
        slurm.await_state(number, "COMPLETED")
    after = judged_keys(job.workspace)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after), "nothing that was finished is judged again"
    assert_same(alone, job.workspace)


def test_term_ends_a_job_in_order_and_it_resumes_when_asked_to(slurm: Slurm, tmp_path: Path, alone: Path) -> None:
    job = gated(tmp_path, stop_at=7)
    with at_the_gate(slurm, job, "--nodes", "2", "--ntasks-per-node", "1", "--launcher", "mpirun") as number:
        slurm.command("scancel", "--batch", "--signal=TERM", number)
        slurm.await_state(number, "FAILED")
        assert slurm.exit_code(number) == 75
        assert job.result().outcome == "interrupted"
        slurm.command("scontrol", "requeue", number)
        slurm.await_state(number, "COMPLETED")
    assert_same(alone, job.workspace)


def test_a_job_that_is_requeued_in_mid_run_resumes(slurm: Slurm, tmp_path: Path, alone: Path) -> None:
    job = gated(tmp_path, stop_at=7)
    with at_the_gate(slurm, job, "--ntasks-per-node", "2", "--launcher", "srun") as number:
        before = judged_keys(job.workspace)
        slurm.command("scontrol", "requeue", number)
        slurm.await_state(number, "COMPLETED")
    after = judged_keys(job.workspace)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after)
    assert_same(alone, job.workspace)


def test_an_array_tunes_each_model_in_a_workspace_of_its_own(slurm: Slurm, tmp_path: Path) -> None:
    jobs = [scripted(tmp_path / name, 1.0, 0.95) for name in ("a", "b")]
    configs = [str(job.config.rename(job.folder / f"{job.folder.name}.yaml")) for job in jobs]
    script = write(slurm, tmp_path, *configs, "--ntasks-per-node", "1", "--workspace", str(tmp_path / "w"))
    number = submit(slurm, script)
    for name in ("a", "b"):
        until(lambda name=name: (tmp_path / "w" / name / "result.json").exists(), lambda: log(tmp_path))  # type: ignore[misc]
        assert RunResult.from_json((tmp_path / "w" / name / "result.json").read_text()).outcome == "met"
    slurm.await_state(number, "COMPLETED")
