"""``distune export``: the files that it writes, and those that it must not touch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from numpy.typing import NDArray

from distune.backends.onnxruntime import storage
from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.cli.main import main
from distune.config.job import ModelSpec, TuningJob
from distune.report.tuning_config import SavedConfig
from tests.backends.onnx_models import SAMPLES, default_config, sequences, transformer_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def small_weights_move_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_SMALL", 16)


def tuned(folder: Path, weights: str = "model.onnx.data") -> Path:
    """``model.onnx`` with its weights beside it, named as torch's exporter does, and a config to apply to it."""
    model = folder / "model.onnx"
    onnx.save(transformer_model(), model, save_as_external_data=True, location=weights, size_threshold=0)
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", str(model))))
    backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate(sequences())))
    config = default_config(backend)
    saved = SavedConfig("onnxruntime", "QDQ", config, backend.export(config).deploy)
    backend.close()
    for name, content in saved.files().items():
        (folder / name).write_bytes(content)
    return model


def export(folder: Path, output: str) -> int:
    given = ["--model", str(folder / "model.onnx"), "--output", str(folder / output)]
    return main(["export", str(folder / "tuning_config.yaml"), *given])


def answers(model: Path) -> NDArray[np.float32]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, dict(sequences()[0]))[0]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_beside_the_fp32_model_it_leaves_its_weights_alone(tmp_path: Path) -> None:
    expected, before = answers(tuned(tmp_path)), contents(tmp_path)
    assert export(tmp_path, "int8.onnx") == 0
    after = contents(tmp_path)
    assert after.keys() - before.keys() == {"int8.onnx", "int8.onnx.data"}
    assert {name: after[name] for name in before} == before
    assert after["int8.onnx.data"], "its own weights are there"
    assert np.abs(answers(tmp_path / "int8.onnx") - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("output", "weights", "named"),
    [
        ("model.onnx", "fp32.data", "model.onnx"),
        ("fp32.data", "fp32.data", "fp32.data"),
        ("int8.onnx", "int8.onnx.data", "int8.onnx.data"),
        ("link.onnx", "fp32.data", "link.onnx"),
        ("tuning_config.yaml", "fp32.data", "tuning_config.yaml"),
    ],
)
def test_what_it_reads_is_never_written_over(
    tmp_path: Path, capsys: Capture, output: str, weights: str, named: str
) -> None:
    tuned(tmp_path, weights)
    if output.startswith("link"):
        (tmp_path / output).symlink_to(tmp_path / "model.onnx")
    before = contents(tmp_path)
    assert export(tmp_path, output) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / named}" in said
    assert "another name" in said
    assert contents(tmp_path) == before


def test_where_it_cannot_be_written_the_reason_is_said(tmp_path: Path, capsys: Capture) -> None:
    tuned(tmp_path)
    (tmp_path / "taken").mkdir()
    assert export(tmp_path, "taken") == 2
    said = capsys.readouterr().err
    assert f"cannot write {tmp_path / 'taken'}" in said
    assert "--workspace" not in said


def test_a_config_without_a_range_that_it_needs_is_the_users_to_mend(tmp_path: Path, capsys: Capture) -> None:
    tuned(tmp_path)
    content = yaml.safe_load((tmp_path / "tuning_config.yaml").read_text())
    content["deploy"]["ranges"].pop("x")
    (tmp_path / "tuning_config.yaml").write_text(yaml.safe_dump(content))
    assert export(tmp_path, "int8.onnx") == 2
    said = capsys.readouterr().err
    assert "does not fit" in said
    assert "'x'" in said
