"""One run holds a workspace, and its files are replaced whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distune.errors import WorkspaceError
from distune.journal import Workspace
from distune.journal.files import write_file

HOLD = """
import sys
from pathlib import Path
from distune.journal import Workspace
Workspace.open(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write_lock(path: Path, **changes: object) -> None:
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    path.mkdir(exist_ok=True)
    (path / "lock").write_text(json.dumps({**me, **changes}))


def test_opening_makes_the_folders_and_leaving_removes_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with Workspace.open(path) as workspace:
        assert workspace.warnings == ()
        assert workspace.log.is_dir()
        assert workspace.cache.is_dir()
        assert workspace.rank_log(3) == path / "log" / "rank-3.log"
        assert (path / "lock").exists()
    assert sorted(entry.name for entry in path.iterdir()) == ["cache", "log"]
    Workspace.open(path).release()


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with Workspace.open(tmp_path), pytest.raises(WorkspaceError, match=f"in use by process {os.getpid()} on this host"):
        Workspace.open(tmp_path)
    Workspace.open(tmp_path).release()


def test_the_lock_of_a_killed_run_is_taken_over_with_a_warning(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        with pytest.raises(WorkspaceError, match=f"process {holder.pid}"):
            Workspace.open(tmp_path)
        holder.kill()
        holder.wait()
        with Workspace.open(tmp_path) as workspace:
            assert str(holder.pid) in workspace.warnings[0]
    finally:
        holder.kill()
        holder.communicate()


def test_a_process_id_that_was_given_out_again_does_not_hold_the_lock(tmp_path: Path) -> None:
    write_lock(tmp_path, started=1.0)
    with Workspace.open(tmp_path) as workspace:
        assert len(workspace.warnings) == 1


def test_an_owner_on_another_host_is_never_taken_over(tmp_path: Path) -> None:
    write_lock(tmp_path, host="node17", pid=4242)
    with pytest.raises(WorkspaceError, match=r"process 4242 on host node17.*rm .*/lock"):
        Workspace.open(tmp_path)


def test_a_job_that_slurm_requeued_on_another_host_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lock(tmp_path, host="node17", pid=4242, slurm_job="77", slurm_restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    Workspace.open(tmp_path).release()


def test_a_lock_file_that_cannot_be_read_says_how_to_remove_it(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("?")
    with pytest.raises(WorkspaceError, match=r"does not say by whom.*rm .*/lock"):
        Workspace.open(tmp_path)


def test_fresh_keeps_every_old_journal_aside(tmp_path: Path) -> None:
    for number in (1, 2):
        with Workspace.open(tmp_path) as workspace:
            write_file(workspace.journal, f"run {number}")
            workspace.write_result(f"result {number}")
            workspace.write_best({"model.onnx": f"model {number}"})
        with Workspace.open(tmp_path, fresh=True) as workspace:
            assert not workspace.journal.exists()
            assert not workspace.result.exists()
            assert not workspace.best.exists()
    assert (tmp_path / "journal-1.jsonl").read_text() == "run 1"
    assert (tmp_path / "journal-2.jsonl").read_text() == "run 2"
    assert (tmp_path / "result-2.json").read_text() == "result 2"
    assert [(tmp_path / f"best-{number}" / "model.onnx").read_text() for number in (1, 2)] == ["model 1", "model 2"]


def test_a_refused_run_with_fresh_moves_nothing(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        write_file(workspace.journal, "going on")
        with pytest.raises(WorkspaceError):
            Workspace.open(tmp_path, fresh=True)
        assert workspace.journal.read_text() == "going on"


def test_a_file_in_the_way_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot make the workspace .*file.*--workspace"):
        Workspace.open(tmp_path / "file")
    with pytest.raises(WorkspaceError, match="--workspace"):
        Workspace.open(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(WorkspaceError, match="no permission"):
            Workspace.open(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_a_file_system_that_cannot_be_written_says_so() -> None:
    with pytest.raises(WorkspaceError, match="/proc/self"):
        Workspace.open(Path("/proc/self"))


def test_best_is_replaced_as_a_whole(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        workspace.write_best({"model.onnx": b"one", "model.onnx.data": b"big"})
        workspace.write_best({"model.onnx": b"two", "tuning_config.yaml": "ops: {}\n"})
        assert {entry.name: entry.read_bytes() for entry in workspace.best.iterdir()} == {
            "model.onnx": b"two",
            "tuning_config.yaml": b"ops: {}\n",
        }
        with pytest.raises(ValueError, match="not a file name"):
            workspace.write_best({"../escape": b""})
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from distune.journal.files import write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "write_file(Path(sys.argv[1]), b'x' * 1000)\n"
    )
    target = tmp_path / "result.json"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=False)
    assert "WorkspaceError: cannot write" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    assert target.read_text() == "old"
