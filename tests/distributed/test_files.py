"""Which files a job names, and how it is told where they are on another node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from distune.backends.onnxruntime.external import external_locations
from distune.config.imports import import_object
from distune.config.job import (
    CalibrationSpec,
    ComponentSpec,
    DataloaderSpec,
    EvaluationSpec,
    MetricSpec,
    ModelSpec,
    StrategySpec,
    TuningJob,
)
from distune.distributed.files import FileStore, file_entry, files_of, folders_of, is_lacking, rewrite_paths
from distune.errors import TransportError


def save_model(path: Path, location: str) -> None:
    """A model with its weights, those of an ``If`` branch and of a ``Constant`` included, in files beside it."""
    weights = [
        onnx.numpy_helper.from_array(np.ones((16, 16), np.float32), name) for name in ("outer", "inner", "constant")
    ]
    for tensor, file in zip(weights, (location, f"branch-{location}", f"constant-{location}"), strict=True):
        (path.parent / file).parent.mkdir(exist_ok=True)
        (path.parent / file).write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, file)
        tensor.ClearField("raw_data")
    value = onnx.helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph([], "branch", [], [value], weights[1:2])
    nodes = [
        onnx.helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        onnx.helper.make_node("Constant", [], ["k"], value=weights[2]),
    ]
    path.write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [value], weights[:1])).SerializeToString()
    )


def job_in(folder: Path) -> TuningJob:
    """A job that names a file in every place where one can be named, and a folder of images."""
    for name in ("calibration.npz", "labels.txt", "user.py", "strategy.py"):
        (folder / name).write_text(f"# {name}\nVALUE = 7\n")
    save_model(folder / "model.onnx", "weights.bin")
    (folder / "images").mkdir()
    (folder / "workspace").mkdir()
    loader = DataloaderSpec(ComponentSpec("Npz", {"path": str(folder / "calibration.npz"), "inputs": ["x"]}))
    images = DataloaderSpec(ComponentSpec("ImageFolder", {"root": str(folder / "images")}))
    return TuningJob(
        ModelSpec("onnxruntime", str(folder / "model.onnx")),
        calibration=CalibrationSpec(loader),
        strategy=StrategySpec("mine", module=str(folder / "strategy.py")),
        evaluation=EvaluationSpec(
            dataloader=images,
            metrics=(
                MetricSpec(ComponentSpec(f"{folder / 'user.py'}:Metric", {"files": [str(folder / "labels.txt")]})),
            ),
            eval_func=f"{folder / 'user.py'}:evaluate",
        ),
        workspace=str(folder / "workspace"),
        source=str(folder / "user.py"),
    )


def test_all_files_of_a_job_are_found_and_folders_apart(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    names = ["calibration.npz", "labels.txt", "model.onnx", "strategy.py", "user.py", "weights.bin"]
    names = sorted([*names, "branch-weights.bin", "constant-weights.bin"])
    assert sorted(path.name for path in files_of(job)) == names
    assert folders_of(job) == [tmp_path / "images"]


def test_every_path_of_a_job_is_rewritten_and_nothing_else(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    mapping = {str(path): f"/elsewhere/{path.name}" for path in files_of(job)}
    moved = rewrite_paths(job, mapping)
    assert moved.model.path == "/elsewhere/model.onnx"
    assert moved.strategy.module == "/elsewhere/strategy.py"
    assert moved.evaluation.eval_func == "/elsewhere/user.py:evaluate"
    metric = moved.evaluation.metrics[0].metric
    assert (metric.name, metric.args) == ("/elsewhere/user.py:Metric", {"files": ["/elsewhere/labels.txt"]})
    assert (moved.workspace, moved.source) == (job.workspace, job.source)
    back = {new: old for old, new in mapping.items()}
    assert rewrite_paths(moved, back) == job


def test_a_node_lacks_a_file_that_is_absent_or_another_one(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"abc")
    entry = file_entry(path)
    assert not is_lacking(entry)
    path.write_bytes(b"abd")
    assert is_lacking(entry)
    path.unlink()
    assert is_lacking(entry)


def test_received_files_keep_their_names_and_neighbours_and_can_be_imported(tmp_path: Path) -> None:
    store = FileStore()
    contents = {
        "/a/sub/weights": b"more weights",
        "/a/model.onnx": b"graph",
        "/a/model.onnx.data": b"weights",
        "/b/user.py": b"V = 7",
    }
    for path, content in contents.items():
        store.append(path, content[:3])
        store.append(path, content[3:])
    published = store.publish()
    model = Path(published["/a/model.onnx"])
    assert model.read_bytes() == b"graph"
    assert model.with_name("model.onnx.data").read_bytes() == b"weights"
    assert (model.parent / "sub" / "weights").read_bytes() == b"more weights"
    assert import_object(f"{published['/b/user.py']}:V", "value") == 7
    store.close()
    assert not model.parents[1].exists()


def test_files_that_a_neighbour_has_adopted_outlive_who_received_them() -> None:
    received, neighbour, late = FileStore(), FileStore(), FileStore()
    received.append("/a/model.onnx", b"graph")
    published = received.publish()
    adopted = neighbour.adopt(published)
    received.close()
    assert Path(adopted["/a/model.onnx"]).read_bytes() == b"graph"
    with pytest.raises(TransportError, match=r"/a/model\.onnx .* has gone"):
        late.adopt(published)
    neighbour.close()
    assert not Path(adopted["/a/model.onnx"]).parents[1].exists()


@pytest.mark.parametrize("content", [b"", b"# no model at all\n", b"\x3a\xff\xff\xff\xff\x0f", bytes(100)])
def test_what_is_no_model_names_no_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert external_locations(path) == ()


def test_half_a_model_names_no_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_model(path, "w")
    assert external_locations(path) == ("branch-w", "constant-w", "w")
    path.write_bytes(path.read_bytes()[:-40])
    assert external_locations(path) == ()
