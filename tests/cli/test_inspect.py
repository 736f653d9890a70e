"""``distune inspect``: tensors of a real run, and what to do where none were kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distune.cli.main import main
from tests.cli.jobs import judged
from tests.report.workspaces import killed_run


def test_it_shows_what_the_run_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = judged(tmp_path, "fc2")
    job.document["tuning"]["diagnosis"] = {"diagnosis_after_tuning": True, "inspect_type": "all"}
    assert main(job.arguments("--quiet")) == 0
    capsys.readouterr()
    assert {"activation", "weight"} <= set(json.loads((job.workspace / "diagnosis.json").read_text())["fc1"])
    assert main(["inspect", str(job.workspace), "--op", "fc1"]) == 0
    shown = capsys.readouterr().out
    for word in ("fc1", "activation", "weight", "SQNR", "dB", "quantized", "█"):
        assert word in shown


def test_it_says_how_to_get_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = killed_run(tmp_path, ["conv_a", "conv_b"], [0.5, 0.895])
    assert main(["inspect", str(workspace), "--op", "conv_a"]) == 2
    assert "--set tuning.diagnosis.op_list=conv_a" in capsys.readouterr().err
    assert main(["inspect", str(workspace), "--op", "conv_x"]) == 2
    assert "did you mean" in capsys.readouterr().err
