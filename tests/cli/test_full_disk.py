"""A disk that is full before or in the midst of a run: said, stopped cleanly, and resumed with nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from distune.cli.main import main
from distune.journal.journal import read_records
from tests.cli.jobs import gated, open_gate, running, scripted, start
from tests.cli.same import assert_same
from tests.distributed.mpirun import needs_mpirun

pytestmark = pytest.mark.timeout(180)

SIZE_KB = 2048


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KB}k", "distune-test", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left of ``disk``."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return filler


def keys(workspace: Path) -> list[str]:
    return [str(record.data["key"]) for record in read_records(workspace / "journal.jsonl") if record.kind == "result"]


def test_a_full_disk_is_an_error_before_anything_runs(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(small_disk)
    job = scripted(tmp_path, 1.0)
    assert main(job.arguments("--quiet", workspace=small_disk / "run")) == 2
    said = capsys.readouterr().err
    assert "the disk is full: free some space" in said
    assert "Traceback" not in said
    assert job.calls == 0


@pytest.mark.parametrize(
    "ranks", [(), pytest.param(("--np", "3"), marks=[needs_mpirun, pytest.mark.mpi, pytest.mark.full])]
)
def test_a_disk_that_fills_up_stops_the_run_and_it_goes_on_where_it_was(
    tmp_path: Path, small_disk: Path, ranks: tuple[str, ...]
) -> None:
    undisturbed = gated(tmp_path / "undisturbed")
    assert main(undisturbed.arguments("--quiet")) == 0
    job = gated(tmp_path / "job", stop_at=6)
    workspace = small_disk / "run"
    with running(job, job.command("--quiet", *ranks, workspace=workspace)) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        filler = fill(small_disk)
        open_gate(job)
        assert process.wait(timeout=60) == 75
        assert process.stderr is not None
        said = process.stderr.read()
        assert psutil.wait_procs(family, timeout=10)[1] == [], "nothing outlives it"
    assert "the disk is full" in said
    assert "the same command again" in said
    assert "Traceback" not in said
    before = keys(workspace)
    assert before
    filler.unlink()
    done = start(job.command("--quiet", *ranks, workspace=workspace))
    assert done.returncode == 0, done.stderr
    after = keys(workspace)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after), "nothing that was kept is done again"
    assert_same(undisturbed.workspace, workspace)


def test_where_the_files_at_the_end_cannot_be_written_the_journal_is_kept_and_the_next_start_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = scripted(tmp_path, 1.0, 0.95)
    job.workspace.mkdir()
    in_the_way = job.workspace / ".best.new"
    in_the_way.write_text("a file where a folder is to be made")
    assert main(job.arguments("--quiet")) == 75
    assert "cannot write the folder" in capsys.readouterr().err
    assert job.result().outcome == "interrupted"
    calls = job.calls
    in_the_way.unlink()
    assert main(job.arguments("--quiet")) == 0
    assert (job.calls, job.result().outcome) == (calls, "met")
    assert (job.workspace / "best" / "model.onnx").exists()


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_runs(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    job = scripted(tmp_path, 1.0)
    assert main(job.arguments("--quiet", workspace=small_disk / "run")) == 2
    assert "read-only" in capsys.readouterr().err
    assert job.calls == 0


def test_a_report_that_could_not_be_written_is_not_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """About 2 s."""
    job = scripted(tmp_path, 1.0)
    assert main(job.arguments("--quiet")) == 0
    assert f"{job.workspace / 'report.html'}" in "".join(capsys.readouterr().err.split())
    (job.workspace / "report.html").unlink()
    (job.workspace / "report.html").mkdir()  # nothing can be put in the place of a folder
    assert main(job.arguments("--quiet")) == 0
    told = capsys.readouterr().err
    assert "the report could not be written" in told
    assert not [line for line in told.splitlines() if line.startswith("report ")]
    assert [line for line in told.splitlines() if line.startswith("result ")]
