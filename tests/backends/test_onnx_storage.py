"""Models with their weights in files of their own, and models too large for one protobuf message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from distune.backends.onnxruntime import storage
from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.storage import DATA_FILE, GRAPH_FILE
from distune.config.job import ModelSpec, TuningJob
from distune.errors import ModelError
from tests.backends.onnx_models import SAMPLES, backend_of, default_config, sequences, transformer_model


@pytest.fixture(autouse=True)
def small_weights_move_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_SMALL", 16)


def saved(tmp_path: Path) -> Path:
    path = tmp_path / "user.onnx"
    onnx.save(transformer_model(), path, save_as_external_data=True, location="user.weights", size_threshold=64)
    return path


def calibrated(path: Path) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", str(path))))
    backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate(sequences())))
    return backend


def run_exported(files: dict[str, bytes], folder: Path) -> np.ndarray:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    session = ort.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, dict(sequences()[0]))[0]
    return output


def test_external_weights_are_read_and_written_as_external_weights(tmp_path: Path) -> None:
    backend, plain = calibrated(saved(tmp_path)), backend_of(transformer_model(), sequences())
    config = default_config(backend)
    feed = sequences()[0]
    np.testing.assert_array_equal(backend.load(None).predict(feed)[0], plain.load(None).predict(feed)[0])
    exported = backend.export(config)
    assert set(exported.files) == {GRAPH_FILE, DATA_FILE}
    judged = backend.load(config).predict(feed)[0]
    np.testing.assert_array_equal(run_exported(dict(exported.files), tmp_path / "best"), judged)
    np.testing.assert_array_equal(plain.load(config).predict(feed)[0], judged)
    assert backend.apply(exported.deploy, config).files == exported.files


def test_where_all_weights_are_small_there_is_no_file_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    backend = calibrated(saved(tmp_path))
    exported = backend.export(default_config(backend))
    assert set(exported.files) == {GRAPH_FILE}
    run_exported(dict(exported.files), tmp_path / "best")


def test_other_weights_make_another_model(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = calibrated(path).facts().digest
    data = bytearray((tmp_path / "user.weights").read_bytes())
    data[-3] ^= 1
    (tmp_path / "user.weights").write_bytes(bytes(data))
    assert before
    assert calibrated(path).facts().digest != before


def test_a_model_too_large_for_one_message_takes_the_same_road_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered here; ``benchmarks`` is the place for 2 GB."""
    plain = backend_of(transformer_model(), sequences())
    config = default_config(plain)
    feed = sequences()[0]
    expected, judged = plain.load(None).predict(feed)[0], plain.load(config).predict(feed)[0]
    monkeypatch.setattr(storage, "MESSAGE_LIMIT", 2000)
    large = backend_of(transformer_model(), sequences())
    assert large.facts().capability == plain.facts().capability
    np.testing.assert_array_equal(large.load(None).predict(feed)[0], expected)
    loaded = large.load(config)
    np.testing.assert_array_equal(loaded.predict(feed)[0], judged)
    exported = large.export(config)
    assert set(exported.files) == {GRAPH_FILE, DATA_FILE}
    np.testing.assert_array_equal(run_exported(dict(exported.files), tmp_path / "best"), judged)
    assert loaded.size_bytes == sum(map(len, exported.files.values()))
    assert loaded.ops_executed_int8 == plain.load(config).ops_executed_int8


def test_what_one_message_cannot_hold_is_not_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = calibrated(saved(tmp_path))
    exported = backend.export(default_config(backend))
    whole = storage.assembled(exported.files)
    session = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = sequences()[0]
    np.testing.assert_array_equal(
        session.run(None, dict(feed))[0], backend.load(default_config(backend)).predict(feed)[0]
    )
    monkeypatch.setattr(storage, "MESSAGE_LIMIT", 2000)
    with pytest.raises(ModelError, match=r"bytes, more than one onnx\.ModelProto may hold .*\.save\(path\)"):
        storage.assembled(exported.files)


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "user.weights").unlink()
    with pytest.raises(Exception, match=r"user\.weights|external"):
        OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", str(path))))
