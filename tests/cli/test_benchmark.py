"""``distune benchmark``: figures of model files and of what a run kept, from data or zeros."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distune.cli.main import main
from tests.cli.jobs import ROOT

EXAMPLES = ROOT / "launch" / "examples"
MODEL = EXAMPLES / "digits_dwcnn.onnx"
SHORT = ("--warmup", "1", "--iteration", "5", "--json")


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["benchmark", *arguments, *SHORT]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_file_and_the_model_that_a_run_kept_are_timed_on_the_data_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best").mkdir()
    kept = tmp_path / "best" / "model.onnx"
    shutil.copy(MODEL, kept)
    config = ("--config", str(EXAMPLES / "digits.yaml"), "--batch-size", "4")
    found = figures(capsys, str(MODEL), str(tmp_path), *config)
    assert list(found) == [str(MODEL), str(kept)]
    for each in found.values():
        assert each["batch_size"] == 4
        assert each["low_ms"] <= each["latency_ms"] <= each["high_ms"]
        assert each["throughput"] > 0


def test_without_data_zeros_are_fed_and_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(MODEL), *SHORT]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[str(MODEL)]["batch_size"] == 1
    assert "zeros are fed: give --config" in printed.err


@pytest.mark.parametrize(
    ("given", "message"), [("none.onnx", "there is no such file"), (".", "the run kept no ONNX model")]
)
def test_what_cannot_be_timed_is_named(
    given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", str(tmp_path / given)]) == 2
    assert f"{tmp_path / given}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe this is no protobuf", "is not an ONNX model file"), (b"", "has no nodes: it is not an ONNX model")],
)
def test_a_file_that_is_no_model_is_named(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "garbage.onnx").write_bytes(content)
    assert main(["benchmark", str(tmp_path / "garbage.onnx")]) == 2
    assert f"{tmp_path / 'garbage.onnx'} {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch-size", "0"), ("instances", "0"), ("cores", "0"), ("warmup", "-1"), ("iteration", "0"), ("iteration", "x")],
)
def test_numbers_that_mean_nothing_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", str(MODEL), f"--{option}", value])
    assert f"--{option}: a whole number, at least {0 if option == 'warmup' else 1}" in capsys.readouterr().err
