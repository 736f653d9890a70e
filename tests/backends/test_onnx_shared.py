"""Weights of a node's ranks are in memory once: in mapped files, which nobody leaves behind."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distune.backends.node_folder import shared_folder
from distune.backends.onnxruntime import shared
from distune.backends.onnxruntime.model import open_model
from distune.backends.onnxruntime.preprocess import prepare
from distune.backends.onnxruntime.session import create_session, optimized_graph
from distune.backends.onnxruntime.shared import LightModel, adopted, complete, is_light, values_of
from distune.backends.onnxruntime.storage import stored_files, stored_size
from distune.config.job import ModelSpec
from distune.errors import ModelError
from tests.backends.onnx_models import backend_of, default_config, model, sequences, transformer_model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every model is worth it here, and files go to a place of our own."""
    gc.collect()
    monkeypatch.setattr(shared, "LIGHT_BYTES", 64)
    monkeypatch.setattr(shared, "WORTH_BYTES", 64)
    monkeypatch.setattr(shared, "_SHARED_BYTES", 256)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return shared_folder()


def files(folder: Path) -> list[str]:
    gc.collect()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def embedding_model(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "look"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], "product"),
    ]
    constants = {name: rng.normal(size=(32, 32)).astype(np.float32) for name in ("table", "w")}
    proto = model(nodes, {"ids": ["n"]}, ["y"], constants)
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return proto


def test_a_light_model_has_no_weights_inside_and_is_the_same_model(folder: Path) -> None:
    proto = embedding_model()
    light = LightModel(proto, shared=True)
    assert light.proto.ByteSize() < 1000 < proto.ByteSize()
    assert all(is_light(tensor) for tensor in light.proto.graph.initializer)
    for tensor in light.proto.graph.initializer:
        original = next(t for t in proto.graph.initializer if t.name == tensor.name)
        np.testing.assert_array_equal(values_of(tensor), numpy_helper.to_array(original))
    assert complete(light.proto) == proto
    assert stored_size(light.proto) == stored_size(proto) == proto.ByteSize()
    for external in (False, True):
        assert stored_files(light.proto, external) == stored_files(proto, external)
    feed = {"ids": np.array([3, 1], np.int64)}
    expected = create_session(proto.SerializeToString()).run(None, feed)[0]
    np.testing.assert_array_equal(create_session(light.proto).run(None, feed)[0], expected)


def test_equal_weights_are_in_one_file_and_the_last_user_removes_it(folder: Path) -> None:
    first, second = LightModel(embedding_model(), shared=True), LightModel(embedding_model(), shared=True)
    assert len(files(folder)) == 1
    other = LightModel(embedding_model(seed=1), shared=True)
    assert len(files(folder)) == 2
    first.close()
    first.close()
    assert len(files(folder)) == 2
    kept = values_of(second.proto.graph.initializer[0])
    del second
    other.close()
    assert not folder.exists()
    assert np.isfinite(kept).all()  # whoever still looks at a weight may go on


def test_a_whole_model_is_prepared_to_the_same_as_a_light_one(folder: Path) -> None:
    proto = embedding_model()
    light = LightModel(proto, shared=True)
    prepared = [prepare(given) for given in (proto, light.proto)]
    weights = [{t.name: values_of(t) for t in one.proto.graph.initializer} for one in prepared]
    np.testing.assert_equal(*weights)


def test_a_trial_brings_only_its_own_weights(folder: Path) -> None:
    """What it has in common with the fp32 model is where that has it."""
    base = LightModel(embedding_model(), shared=True)
    trial = onnx.ModelProto()
    trial.CopyFrom(base.proto)
    rounded = np.rint(values_of(trial.graph.initializer[1]))
    trial.graph.initializer[1].CopyFrom(numpy_helper.from_array(rounded, "w"))
    light = LightModel(trial)
    assert len(files(folder)) == 2
    table, w = light.proto.graph.initializer
    assert table == base.proto.graph.initializer[0]
    np.testing.assert_array_equal(values_of(w), rounded)
    light.close()
    assert len(files(folder)) == 1


def test_other_processes_use_the_file_that_is_there_and_leave_it_there(folder: Path) -> None:
    path = folder.parent / "model.onnx"
    onnx.save(embedding_model(), path)
    spec = ModelSpec("onnxruntime", str(path))
    ours = open_model(spec)
    (name,) = files(folder)
    inode = (folder / name / "distune.weights").stat().st_ino
    program = f"""
import os, signal, tempfile
from distune.backends.onnxruntime import shared
shared.LIGHT_BYTES = shared.WORTH_BYTES = 64
tempfile.tempdir = {str(folder.parent)!r}
from distune.backends.onnxruntime.model import open_model
from distune.config.job import ModelSpec
light = open_model(ModelSpec("onnxruntime", {str(path)!r}))
other = shared.LightModel(open_model(ModelSpec("onnxruntime", {str(path)!r})).proto)
print(*os.listdir({str(folder)!r}), flush=True)
"""
    seen = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert seen == [name]
    assert (folder / name / "distune.weights").stat().st_ino == inode
    # One that is killed leaves its file; the next that writes one removes it.
    killed = program.replace(str(path), str(folder.parent / "other.onnx")) + "os.kill(os.getpid(), signal.SIGKILL)"
    onnx.save(embedding_model(seed=1), folder.parent / "other.onnx")
    assert subprocess.run([sys.executable, "-c", killed], capture_output=True).returncode == -signal.SIGKILL
    assert len(files(folder)) == 2
    third = LightModel(embedding_model(seed=2), shared=True)
    assert len(files(folder)) == 2
    assert name in files(folder)
    third.close()
    ours.close()
    assert not folder.exists()


def test_a_backend_gives_the_same_models_with_light_weights_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(transformer_model(), sequences())
    assert files(folder)
    config = default_config(backend)
    feed = sequences()[0]
    judged = backend.load(config)
    light = (
        judged.predict(feed)[0],
        backend.export(config),
        judged.native,
        judged.size_bytes,
        list(optimized_graph(judged.native).graph.node),
        backend.load(None).predict(feed)[0],
    )
    del judged
    backend.close()
    del backend
    assert files(folder) == []
    monkeypatch.setattr(shared, "WORTH_BYTES", 1 << 30)
    plain = backend_of(transformer_model(), sequences())
    loaded = plain.load(config)
    np.testing.assert_array_equal(light[0], loaded.predict(feed)[0])
    assert light[1] == plain.export(config)
    assert light[2] == loaded.native
    assert light[3] == loaded.size_bytes == loaded.native.ByteSize()
    assert light[4] == list(optimized_graph(loaded.native).graph.node)
    np.testing.assert_array_equal(light[5], plain.load(None).predict(feed)[0])


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "outside"])
def test_external_data_that_are_not_there_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "user.onnx"
    onnx.save(embedding_model(), path, save_as_external_data=True, location="user.data", size_threshold=64)
    if damage == "missing":
        (tmp_path / "user.data").unlink()
    elif damage in ("short", "empty"):
        (tmp_path / "user.data").write_bytes(bytes(100 if damage == "short" else 0))
    else:
        proto = onnx.load(path, load_external_data=False)
        proto.graph.initializer[0].external_data[0].value = "../user.data"
        path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"user\.data"):
        open_model(ModelSpec("onnxruntime", str(path)))


def test_a_folder_of_somebody_else_is_refused(folder: Path) -> None:
    folder.write_text("not a folder")
    with pytest.raises(ModelError, match="TMPDIR"):
        LightModel(embedding_model(), shared=True)


def test_adopted_weights_are_forgotten_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "user.onnx"
    onnx.save(embedding_model(), path, save_as_external_data=True, location="user.data", size_threshold=64)
    proto = onnx.load(path, load_external_data=False)
    with adopted(proto, tmp_path):
        assert values_of(proto.graph.initializer[0]).shape == (32, 32)
    with pytest.raises(ModelError, match="not open"):
        values_of(proto.graph.initializer[0])
