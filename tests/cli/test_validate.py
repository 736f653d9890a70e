"""``validate --check-model`` finds what would end a run before its first trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.cli.main import main
from tests.cli.jobs import judged


def test_a_metric_that_the_criterion_looks_at_the_wrong_way_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = judged(tmp_path)
    assert main(["validate", "--check-model", str(job.config)]) == 0
    job.document["evaluation"]["accuracy"]["metric"] = {"Loss": {}}
    assert main(["validate", "--check-model", str(job.config)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "lower is better for the metric Loss" in told
    assert "set its higher_is_better to false" in told
    job.document["tuning"]["accuracy_criterion"]["higher_is_better"] = False
    assert main(["validate", "--check-model", str(job.config)]) == 0


def test_what_is_wrong_with_the_data_is_told_without_a_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = judged(tmp_path)
    calibration = job.document["quantization"]["calibration"]["dataloader"]
    calibration["transform"] = {"Normalize": {"mean": [0.5, 0.5], "std": [1.0, 1.0]}}
    assert main(["validate", "--check-model", str(job.config)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "Normalize" in told
    assert "rank 0" not in told
