"""``distune doctor``: what it finds, one line each."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from distune.cli.main import main


def test_it_says_what_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found["python"].startswith(platform.python_version())
    assert "usable" in found["cores"]
    assert {"onnxruntime", "[mpi]", "[samplers]", "[sigopt]", "MPI", "sigoptlite"} <= found.keys()


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
