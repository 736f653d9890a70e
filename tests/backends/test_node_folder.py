"""Folders that the processes of a node share: made by who comes first, gone with who leaves last."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distune.backends import node_folder
from distune.backends.node_folder import join, leave, remove_unused, shared_folder, turn
from distune.errors import ModelError


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def processes(code: str, count: int) -> list[subprocess.Popen[str]]:
    """Processes that say ``ready`` and run ``code`` once they are told to."""
    start = "import os, tempfile; tempfile.tempdir = os.environ['FOLDER']\nfrom distune.backends.node_folder import *\n"
    command = [sys.executable, "-c", f"{start}print('ready', flush=True); input()\n{code}"]
    environment = {**os.environ, "FOLDER": str(tempfile.tempdir)}
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, text=True)
        for _ in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    return started


@contextmanager
def locked() -> Iterator[None]:
    """As another process would."""
    descriptor = os.open(shared_folder(), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_processes_that_come_and_leave_at_once_do_not_hinder_each_other() -> None:
    """Folders, and the one that they are in, come and go all the time: about 1 s."""
    code = """
for number in range(200):
    folder, lock = join(str(number % 3))
    with turn(folder) as file:
        count = int(file.read() or 0) + 1
        file.seek(0)
        file.write(b"%d" % count)
        (folder / f"{os.getpid()}").touch()
    assert (folder / f"{os.getpid()}").exists()
    leave(folder, lock)
"""
    started = processes(code, 3)
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in started] == [""] * 3
    assert not shared_folder().exists()


def test_a_turn_tells_the_next_one_what_was_kept_in_it() -> None:
    folder, lock = join("x")
    for expected in (b"", b"1", b"12"):
        with turn(folder) as file:
            assert file.read() == expected
            file.write(b"%d" % (len(expected) + 1))
    leave(folder, lock)
    assert not shared_folder().exists()


def test_what_one_process_uses_stays_when_others_remove_what_is_unused() -> None:
    (process,) = processes("join('theirs'); print('joined', flush=True); input()", 1)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdout.readline()
    ours, lock = join("ours")
    leave(ours, lock)
    remove_unused()
    assert [path.name for path in shared_folder().iterdir()] == ["theirs"]
    process.kill()
    process.communicate()
    remove_unused()
    assert not shared_folder().exists()


def test_nobody_waits_for_ever_for_a_process_that_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_folder, "_PATIENCE_S", 0.0)
    folder, lock = join("x")
    with locked():
        with pytest.raises(TimeoutError, match="locked by another process"):
            join("y", patience_s=0.0)
        leave(folder, lock)
        remove_unused()
    assert folder.exists(), "for whoever comes next"
    join("z")
    assert [path.name for path in shared_folder().iterdir()] == ["z"]


def test_a_finalizer_that_runs_while_its_thread_has_the_lock_does_not_wait_for_itself() -> None:
    folder, lock = join("x")
    with node_folder._alone(shared_folder(), None):
        leave(folder, lock)
    assert folder.exists()
    remove_unused()
    assert not shared_folder().exists()


def test_a_link_to_somewhere_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shared_folder().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="TMPDIR"):
        join("x")
