"""``distune init``: a first configuration that fits the model, and is right but for its gaps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distune.api.names import known_names
from distune.api.starter import GAP, guess_task, sketch, starter
from distune.config.load import load_config
from tests.cli.jobs import distune

EXAMPLE = Path(__file__).parents[2] / "launch" / "examples" / "digits_dwcnn.onnx"


def model(path: Path, inputs: list[tuple[str, int, list[object]]], output: tuple[str, list[object]]) -> Path:
    """A model with these inputs and one output, whose node does not matter."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "weight")
    node = helper.make_node("MatMul", [inputs[0][0], "weight"], [output[0]])
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize(
    ("inputs", "output", "task"),
    [
        ([("x", TensorProto.FLOAT, ["n", 3, 32, 32])], ("y", ["n", 10]), "images"),
        ([("x", TensorProto.FLOAT, ["n", 64])], ("y", ["n", 10]), "features"),
        ([("ids", TensorProto.INT64, ["n", "t"])], ("logits", ["n", "t", 65]), "language_model"),
        ([("ids", TensorProto.INT64, ["n", "t"]), ("m", TensorProto.INT64, ["n", "t"])], ("y", ["n", 384]), "text"),
        ([("x", TensorProto.FLOAT, ["n", 3, 32, 32])], ("boxes", ["n", 100, 4]), "unknown"),
    ],
)
def test_the_task_is_guessed_from_the_shapes(
    tmp_path: Path, inputs: list[tuple[str, int, list[object]]], output: tuple[str, list[object]], task: str
) -> None:
    assert guess_task(sketch(model(tmp_path / "m.onnx", inputs, output))) == task


@pytest.mark.parametrize("kind", [["n", 3, 32, 32], ["n", 64], ["n", 5, 7]])
def test_with_its_gaps_filled_the_configuration_is_valid(tmp_path: Path, kind: list[object]) -> None:
    path = model(tmp_path / "m.onnx", [("x", TensorProto.FLOAT, kind)], ("y", ["n", 10]))
    text, gaps = starter(sketch(path), tmp_path)
    assert gaps != ()
    for name in set(re.findall(rf"{GAP}\w*\.npz", text)):
        np.savez(tmp_path / name, images=np.zeros((2, 32, 32, 3), np.uint8), x=np.zeros((2, 64)), labels=np.zeros(2))
    (tmp_path / f"{GAP}.py").write_text("def evaluate(model):\n    return 1.0\n")
    config = tmp_path / "cfg.yaml"
    config.write_text(text)
    job = load_config(config, (), known_names()).job()
    assert job.criterion.tolerance == 0.01
    assert job.model.path == str(path)


def test_the_command_writes_once_and_says_what_is_left(tmp_path: Path) -> None:
    first = distune(tmp_path, "init", str(EXAMPLE))
    assert first.returncode == 0, first.stderr
    assert "ops with weights: 11 Conv, 1 Gemm" in (tmp_path / "digits_dwcnn.yaml").read_text()
    assert "Left to fill in" in first.stderr
    second = distune(tmp_path, "init", str(EXAMPLE))
    assert second.returncode == 2
    assert "is there already" in second.stderr


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff\xff\xff not a model")
    result = distune(tmp_path, "init", "m.onnx")
    assert result.returncode == 2
    assert "is not an ONNX model" in result.stderr
