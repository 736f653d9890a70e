"""A model too large for one protobuf message, on three ranks: its weights stay outside from end to end.

The limit of a message is lowered in every process here; a model of 2.25 GiB takes the same road.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from onnx import helper

from distune.backends.onnxruntime import shared, storage
from distune.cli.main import main
from distune.distributed.launcher import launcher_environment, mpirun_command
from tests.backends.onnx_models import model
from tests.cli.jobs import start
from tests.distributed.mpirun import LAUNCHER, needs_mpirun

pytestmark = [needs_mpirun, pytest.mark.mpi, pytest.mark.full, pytest.mark.timeout(240)]

LOWERED = """\
from distune.backends.onnxruntime import shared, storage

storage.MESSAGE_LIMIT = 1 << 20
shared.WORTH_BYTES = 1 << 20
"""


def job(folder: Path, width: int = 512, layers: int = 4) -> Path:
    """A chain of matrices, 4 MiB in a file of their own, and data without a right answer."""
    rng = np.random.default_rng(0)
    nodes, weights = [], {}
    for number in range(layers):
        weights[f"w{number}"] = (rng.normal(size=(width, width)) / width**0.5).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [f"r{number}", f"w{number}"], [f"h{number}"], f"matmul{number}"))
        nodes.append(helper.make_node("Relu", [f"h{number}"], [f"r{number + 1}"], f"relu{number}"))
    proto = model(nodes, {"r0": ["n", width]}, [f"r{layers}"], weights)
    onnx.save(proto, folder / "large.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    np.savez(folder / "data.npz", x=rng.normal(size=(8, width)).astype(np.float32), y=np.zeros(8, np.int64))
    loader = {"batch_size": 4, "dataset": {"Npz": {"path": "data.npz", "inputs": "x", "label": "y"}}}
    content = {
        "model": {"name": "large", "framework": "onnxruntime", "path": "large.onnx"},
        "quantization": {"approach": "post_training_dynamic_quant"},
        "evaluation": {"accuracy": {"metric": {"topk": 1}, "dataloader": loader}},
        "tuning": {"accuracy_criterion": {"absolute": 1.0}, "exit_policy": {"timeout": 0, "max_trials": 3}},
    }
    path = folder / "large.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_it_is_tuned_exported_with_external_data_and_loads_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(tmp_path)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(LOWERED)
    python_path = os.pathsep.join([str(tmp_path / "start"), str(Path(__file__).resolve().parents[2])])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = ["python", "-m", "distune", "run", str(config), "--workspace", str(tmp_path / "run")]
    environment = launcher_environment({}) | {"PYTHONPATH": python_path, "TMPDIR": str(temporary)}
    done = start(mpirun_command(3, command, LAUNCHER), seconds=200, **environment)
    assert done.returncode == 0, done.stderr
    assert not list(temporary.glob("distune-*")), "weights were left behind"
    best = tmp_path / "run" / "best"
    assert {path.name for path in best.iterdir()} == {"model.onnx", "model.onnx.data", "tuning_config.yaml"}
    assert (best / "model.onnx").stat().st_size < 20_000
    assert (best / "model.onnx.data").stat().st_size < 0.3 * (tmp_path / "weights.bin").stat().st_size
    session = ort.InferenceSession(best / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {"r0": np.load(tmp_path / "data.npz")["x"]}
    found = session.run(None, feed)[0]
    fp32 = ort.InferenceSession(tmp_path / "large.onnx", providers=["CPUExecutionProvider"]).run(None, feed)[0]
    assert np.abs(found - fp32).max() < 0.1 * np.abs(fp32).max()
    # Made again from the saved config alone it is the same, still in two files.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "MESSAGE_LIMIT", 1 << 20)
    monkeypatch.setattr(shared, "WORTH_BYTES", 1 << 20)
    (tmp_path / "again").mkdir()
    again = ["export", str(best / "tuning_config.yaml"), "--model", "large.onnx", "--output", "again/model.onnx"]
    assert main(again) == 0
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "again" / name).read_bytes() == (best / name).read_bytes()
