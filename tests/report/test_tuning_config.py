"""A saved tuning config comes back as it was, weights included, and says what is missing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import yaml

from distune.backends.weight_only.grouped import GroupedWeight, WeightFormat
from distune.backends.weight_only.kept import restored, saved
from distune.errors import UsageError
from distune.report.tuning_config import ARRAYS_FILE, CONFIG_FILE, SavedConfig
from distune.space.op_config import OpConfig, TensorConfig, TuningConfig

GPTQ = OpConfig("weight_only", None, TensorConfig("int", "asym", "per_channel", "GPTQ", 4, 16))
CONFIG = TuningConfig((("/layer.0/MatMul", GPTQ),), (), 64)


def weight(seed: int = 0) -> GroupedWeight:
    rng = np.random.default_rng(seed)
    integers = rng.integers(0, 16, (32, 8), np.uint8)
    scales, zeros = rng.random((2, 8), np.float32), rng.integers(0, 16, (2, 8)).astype(np.float32)
    return GroupedWeight(integers, scales, zeros, WeightFormat(4, 16, "asym"), rng.random(32, np.float32))


def config(seed: int = 0) -> SavedConfig:
    deploy = {"ranges": {"x": [0.0, 1.0]}, "weights": saved({"/layer.0/MatMul": weight(seed)}, CONFIG.by_name)}
    return SavedConfig("onnxruntime", "QDQ", CONFIG, deploy)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / CONFIG_FILE


def same(found: GroupedWeight, expected: GroupedWeight) -> bool:
    fields = ("integers", "scales", "zero_points", "input_scale")
    return found.format == expected.format and all(
        np.array_equal(getattr(found, name), getattr(expected, name)) for name in fields
    )


def test_weights_are_in_a_file_of_arrays_beside_the_yaml(tmp_path: Path) -> None:
    files = config().files()
    assert list(files) == [CONFIG_FILE, ARRAYS_FILE]
    assert len(files[CONFIG_FILE]) < 1500
    loaded = SavedConfig.load(written(tmp_path, files))
    assert loaded.config == CONFIG
    assert loaded.deploy["ranges"] == {"x": [0.0, 1.0]}
    assert same(restored(loaded.deploy["weights"], CONFIG.by_name)["/layer.0/MatMul"], weight())
    assert loaded.files() == files
    with np.load(tmp_path / ARRAYS_FILE, allow_pickle=False) as arrays:  # anybody can read it
        assert arrays["arr_0"].dtype == np.uint8


def test_a_config_without_weights_is_one_file(tmp_path: Path) -> None:
    plain = SavedConfig("onnxruntime", "QDQ", CONFIG, {"ranges": {"x": [0.0, 1.0]}})
    assert list(plain.files()) == [CONFIG_FILE]
    assert SavedConfig.load(written(tmp_path, plain.files())) == plain


def test_a_missing_file_of_arrays_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, config().files())
    (tmp_path / ARRAYS_FILE).unlink()
    with pytest.raises(UsageError, match=r"tuning_config\.yaml needs .*tuning_config\.npz .*both files"):
        SavedConfig.load(path)


def test_the_arrays_of_another_config_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, config().files() | {ARRAYS_FILE: config(seed=1).files()[ARRAYS_FILE]})
    with pytest.raises(UsageError, match="belongs to another tuning config"):
        SavedConfig.load(path)


def test_weights_that_are_text_in_the_yaml_are_still_read(tmp_path: Path) -> None:
    made = weight()
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        integers=made.integers,
        scales=made.scales,
        zero_points=made.zero_points,
        input_scale=np.asarray(made.input_scale),
    )
    text = base64.b64encode(buffer.getvalue()).decode()
    old = yaml.safe_load(config().files()[CONFIG_FILE])
    del old["arrays"]
    old["deploy"]["weights"] = {"/layer.0/MatMul": text}
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(old))
    loaded = SavedConfig.load(tmp_path / CONFIG_FILE)
    assert same(restored(loaded.deploy["weights"], CONFIG.by_name)["/layer.0/MatMul"], made)
