"""A saved tuning config comes back as it was, weights included, and says what is missing."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

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


def put(content: Any, keys: tuple[Any, ...], value: Any) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


OP = ("config", "ops", "/layer.0/MatMul")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("deploy",), None, r"deploy is None"),
        (("deploy", "ranges"), "text", r"deploy\.ranges is 'text'"),
        (("deploy", "ranges", "x"), 3, r"deploy\.ranges\.x is 3; expected \[lowest value, highest value\]"),
        (("deploy", "ranges", "x"), [5, -5], r"deploy\.ranges\.x is \[5, -5\]"),
        (("deploy", "ranges", "x"), [float("nan"), 1.0], r"deploy\.ranges\.x is \[nan"),
        (("deploy", "ranges", "x"), ["low", 1.0], r"deploy\.ranges\.x is \['low'"),
        (("deploy", "reduce_range"), "no", r"deploy\.reduce_range is 'no'; expected true or false"),
        (("deploy", "weights", "/layer.0/MatMul"), 5, r"deploy\.weights\./layer\.0/MatMul is 5"),
        (("deploy", "weights", "/layer.0/MatMul", "scales"), {"$array": 99}, r"incomplete or was changed"),
        (("deploy", "graph"), {"smooth_quant": {"x": 1}}, r"deploy\.graph\.smooth_quant"),
        ((*OP, "mode"), "statics", r"MatMul\.mode is 'statics'; expected one of static, dynamic"),
        ((*OP, "weight", "scheme"), ["sym"], r"weight\.scheme is \['sym'\]; expected one of sym, asym"),
        ((*OP, "weight", "bits"), "4", r"weight\.bits is '4'; expected a whole number"),
        (("framework",), ["onnxruntime"], r"framework is \['onnxruntime'\]"),
        (("quant_format",), "QDQQ", r"quant_format is 'QDQQ'; expected QDQ or QOperator"),
    ],
)
def test_what_was_edited_into_something_else_is_named(
    tmp_path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    path = written(tmp_path, config().files())
    content = yaml.safe_load(path.read_text())
    put(content, keys, value)
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=message) as caught:
        SavedConfig.load(path)
    assert str(path) in str(caught.value)
