"""What the embedded example promises: honest data, an accurate small model, default int8 that really fails on it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from distune.api.names import known_names
from distune.cli.main import main
from distune.config.load import load_config
from distune.data import open_dataloader

EXAMPLES = Path(__file__).resolve().parents[2] / "launch" / "examples"
MODEL = EXAMPLES / "digits_dwcnn.onnx"
EMBEDDED = ("digits.yaml",)
ON_ASSETS = ("resnet20.yaml", "mobilenetv1.yaml", "chargpt_woq.yaml")


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, NDArray[np.generic]]]:
    return {part: dict(np.load(EXAMPLES / f"digits_{part}.npz")) for part in ("calib", "test")}


@pytest.fixture(scope="module")
def example_script() -> ModuleType:
    """``train_digits.py`` as a module; it needs torch only where it trains."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("train_digits", EXAMPLES / "train_digits.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


def test_training_calibration_and_test_rows_are_disjoint(stored, example_script) -> None:
    train, _, _ = example_script.parts()
    used = [set(train.rows.tolist()), *(set(stored[part]["rows"].tolist()) for part in ("calib", "test"))]
    assert [len(rows) for rows in used] == [900, 100, 797]
    assert len(set.union(*used)) == 1797


def test_no_image_is_in_two_parts(stored, example_script) -> None:
    images = np.concatenate([example_script.parts()[0].images, stored["calib"]["images"], stored["test"]["images"]])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_stored_parts_are_what_the_script_makes(stored, example_script) -> None:
    _, calibration, test = example_script.parts()
    for part, made in (("calib", calibration), ("test", test)):
        for field in ("images", "labels", "rows"):
            np.testing.assert_array_equal(stored[part][field], getattr(made, field))


def test_files_are_small() -> None:
    assert MODEL.stat().st_size < 300_000
    assert sum(path.stat().st_size for path in EXAMPLES.glob("*.npz")) < 1_000_000


def test_model_is_opset_17_with_dynamic_batch_named_nodes_and_no_batch_norm() -> None:
    model = onnx.load(MODEL)
    assert [entry.version for entry in model.opset_import] == [17]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def test_fp32_is_accurate_and_default_int8_misses_one_percent_which_fallback_mends(
    stored, example_script, tmp_path
) -> None:
    _, calibration, test = example_script.parts()

    def accuracy(path: Path) -> float:
        return example_script._accuracy(example_script._session(path), test)

    def quantized(fallback: Sequence[str], **scheme: bool) -> float:
        example_script._quantize(tmp_path / "int8.onnx", calibration, fallback, **scheme)
        return accuracy(tmp_path / "int8.onnx")

    baseline = accuracy(MODEL)
    target = 0.99 * baseline
    assert baseline >= 0.98
    assert quantized([]) < target
    assert quantized([], per_channel=False) < target
    assert quantized([], signed=True) < target
    assert quantized([f"{block}_pw" for block in example_script.FAINT]) >= target


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_configuration_is_valid_from_any_folder(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "--check-model", str(EXAMPLES / name)]) == 0


@pytest.mark.assets
@pytest.mark.parametrize("name", ON_ASSETS)
def test_the_configurations_on_real_models_are_valid(name, assets, monkeypatch) -> None:
    monkeypatch.setenv("DISTUNE_ASSETS", str(assets))
    assert main(["validate", "--check-model", str(EXAMPLES / name)]) == 0


@pytest.mark.assets
@pytest.mark.parametrize(("name", "published"), [("resnet20.yaml", 0.8158), ("mobilenetv1.yaml", 0.8012)])
def test_the_configurations_prepare_images_as_the_models_were_trained(name, published, assets, monkeypatch) -> None:
    """Only the right preprocessing reaches the known fp32 accuracy (here within the noise of 1,000 of 5,000 rows)."""
    monkeypatch.setenv("DISTUNE_ASSETS", str(assets))
    job = load_config(EXAMPLES / name, [], known_names()).job()
    session = ort.InferenceSession(job.model.path)
    right = total = 0
    for batch in open_dataloader(job.evaluation.dataloader, job.seed).head(1000):
        right += int((session.run(None, {"input": batch.inputs})[0].argmax(1) == batch.labels).sum())
        total += batch.size
    assert total == 1000
    assert right / total == pytest.approx(published, abs=0.025)
