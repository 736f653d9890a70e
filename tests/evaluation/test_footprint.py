"""The peak resident set is that of a fresh process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from distune.backends.base import ExportedModel
from distune.errors import TrialError
from distune.evaluation.footprint import peak_resident_bytes

MIB = 1 << 20
RUNNERS = """
import os, time
import numpy as np

def allocate(path, feed, threads):
    held = np.ones(int(open(path).read()), np.uint8)
    assert list(feed) == ["a/b", "text"] and feed["text"].tolist() == ["x", "yz"], feed
    assert threads == 2
    assert os.path.exists(os.path.join(os.path.dirname(path), "data", "weights.bin"))

def environment(path, feed, threads):
    left = [name for name in os.environ if name.startswith(("OMPI_", "PMIX_", "PRTE_", "PMI_"))]
    assert not left, left

def broken(path, feed, threads):
    raise RuntimeError("cannot run this")

def endless(path, feed, threads):
    time.sleep(600)
"""


@pytest.fixture
def runners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an importable module with the functions of ``RUNNERS``."""
    (tmp_path / "footprint_runners.py").write_text(RUNNERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "footprint_runners"


def _model(content: bytes = b"0") -> ExportedModel:
    return ExportedModel({"model.txt": content, "data/weights.bin": b"1"})


FEED = {"a/b": np.zeros((1, 2), np.float32), "text": np.array(["x", "yz"], dtype=object)}


def test_what_the_model_allocates_is_seen(runners: str) -> None:
    small, large = (
        peak_resident_bytes(f"{runners}:allocate", _model(str(size).encode()), FEED, threads=2)
        for size in (MIB, 129 * MIB)
    )
    assert large - small == pytest.approx(128 * MIB, rel=0.05)


def test_the_tuners_own_memory_is_not_counted(runners: str) -> None:
    ballast = np.ones(512 * MIB, np.uint8)
    assert peak_resident_bytes(f"{runners}:environment", _model(), FEED) < 256 * MIB
    assert ballast[0] == 1


def test_the_process_is_no_rank_of_the_launcher(runners: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PRTE_X", "PMI_RANK"):
        monkeypatch.setenv(name, "1")
    assert peak_resident_bytes(f"{runners}:environment", _model(), FEED) > 0


def test_a_model_that_cannot_run_is_a_trial_error_with_the_reason(runners: str) -> None:
    with pytest.raises(TrialError, match="cannot run this"):
        peak_resident_bytes(f"{runners}:broken", _model(), FEED)


def test_a_model_that_hangs_is_ended(runners: str) -> None:
    with pytest.raises(TrialError, match="did not end within 1 s"):
        peak_resident_bytes(f"{runners}:endless", _model(), FEED, timeout=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_importing_it_brings_no_framework() -> None:
    import subprocess

    code = "import sys, distune.evaluation.footprint; print({'onnx', 'onnxruntime', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
