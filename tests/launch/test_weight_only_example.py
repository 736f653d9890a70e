"""The character GPT in 4 bits, really tuned: alone, on three ranks, and the figures of the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distune.cli.main import main
from distune.report.result import RunResult
from tests.cli.same import assert_same
from tests.distributed.mpirun import needs_mpirun

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "launch" / "examples" / "chargpt_woq.yaml"

pytestmark = [pytest.mark.assets, pytest.mark.full, pytest.mark.timeout(600)]


def tuned(workspace: Path, *more: str) -> RunResult:
    """A run of the example, with more to do than its default: rounding misses a tenth of a percent everywhere."""
    strict = ["--set", "tuning.accuracy_criterion.relative=0.0002"]
    command = [sys.executable, "-m", "distune", "run", str(CONFIG), "--workspace", str(workspace), "--quiet"]
    done = subprocess.run([*command, *strict, *more], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return RunResult.from_json((workspace / "result.json").read_text())


def test_a_percent_is_kept_at_a_fifth_of_the_size(assets: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DISTUNE_ASSETS", str(assets))
    assert main(["run", str(CONFIG), "--workspace", str(tmp_path), "--quiet"]) == 0
    result = RunResult.from_json((tmp_path / "result.json").read_text())
    assert result.outcome == "met"
    assert result.baseline is not None
    assert result.best is not None
    assert result.best.size_bytes is not None
    assert result.best.size_bytes < 0.35 * result.baseline.size_bytes
    labels = [(trial.stage, trial.verdict) for trial in result.trials]
    assert labels == [("weight-only presets", "not_met"), ("weight-only presets", "met")]


@needs_mpirun
@pytest.mark.mpi
def test_three_ranks_decide_as_one_does(assets: Path, tmp_path: Path, monkeypatch) -> None:
    """Presets, probes and layers alike: second moments and their sums are the same bits for any sharding."""
    monkeypatch.setenv("DISTUNE_ASSETS", str(assets))
    alone = tuned(tmp_path / "alone")
    stages = list(dict.fromkeys(trial.stage for trial in alone.trials))
    assert stages[:2] == ["weight-only presets", "default"]
    assert "weight-only bits by layer" in stages
    tuned(tmp_path / "three", "--np", "3")
    assert_same(tmp_path / "alone", tmp_path / "three")
    exported = [(tmp_path / name / "best" / "model.onnx").read_bytes() for name in ("alone", "three")]
    assert exported[0] == exported[1]


def test_gptq_beats_rounding_and_awq_is_never_worse_on_the_gpt(assets: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DISTUNE_ASSETS", str(assets))
    figures = tmp_path / "weight_only.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "weight_only.py"), "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    loss = {(item["algorithm"], item["format"]): item["loss"] for item in json.loads(figures.read_text())["figures"]}
    # The figures of plain rounding are known from ONNX Runtime's own quantizer.
    assert loss["RTN, sym", "w4g32"] == pytest.approx(0.0082, abs=2e-4)
    assert loss["RTN", "w4g32"] == pytest.approx(0.0105, abs=2e-4)
    assert loss["GPTQ", "w3g32"] < 0.01
