"""Of which tensors calibration keeps statistics, and that what is quantized by another's range loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distune.backends.onnxruntime.calibration import measured_at
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.statistics import CalibrationStatistics
from distune.space.op_config import TensorConfig
from tests.backends.onnx_models import backend_of, convolution_model, default_config, images, model


def node(op_type: str, inputs: str, output: str, **attributes: float | Sequence[int]) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], output, **attributes)


def index_of(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> GraphIndex:
    constants = {
        "w": np.ones((4, 4), np.float32),
        "six": np.float32(6),
        "zero": np.float32(0),
        "flat": np.array([2, 8]),
    }
    proto = model(nodes, {"x": [4, 4]}, outputs, constants)
    return GraphIndex(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("cut_off", [node("Relu", "a", "b"), node("Clip", "a zero six", "b")], ids=["Relu", "Clip"])
def test_what_only_a_cut_off_reads_has_the_range_of_what_is_left(cut_off: onnx.NodeProto) -> None:
    index = index_of([node("MatMul", "x w", "a"), cut_off, node("MatMul", "b w", "y")], ["y"])
    assert [measured_at(index, name) for name in ("x", "a", "b", "y")] == ["x", "b", "b", "y"]


def test_what_something_else_reads_too_is_measured_itself() -> None:
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("Add", "a b", "y")]
    assert measured_at(index_of(nodes, ["y"]), "a") == "a"
    assert measured_at(index_of(nodes[:2], ["b", "a"]), "a") == "a"


def test_moved_values_are_measured_where_they_come_from() -> None:
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("Reshape", "t flat", "r"), node("Relu", "r", "y")]
    index = index_of([*nodes, node("Sigmoid", "r", "z")], ["y", "z"])
    assert [measured_at(index, name) for name in ("t", "r", "y")] == ["x", "x", "y"]


def test_statistics_are_kept_once_for_tensors_of_the_same_range() -> None:
    backend = backend_of(convolution_model(), images())
    blob = backend.calibrate(backend.variant(default_config(backend)), enumerate(images()))
    assert sorted(CalibrationStatistics.from_bytes(blob).tensors) == sorted({"x", "r1", "r2", "c3", "p", "y"})


def test_a_symmetric_tensor_before_a_relu_spends_no_integers_on_what_is_cut_off() -> None:
    """Its own range would reach as far down as up, and below zero everything is cut off."""
    backend = backend_of(convolution_model(), images(16))
    signed = TensorConfig("int8", "sym", "per_tensor", "minmax")
    config = default_config(backend)
    symmetric = replace(config, ops=tuple((name, replace(op, activation=signed)) for name, op in config.ops))
    quantized = backend.load(symmetric).native
    scales = {node.input[0]: node.input[1] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    single = [tensor for tensor in quantized.graph.initializer if not tensor.dims]
    value = {tensor.name: float(numpy_helper.to_array(tensor)) for tensor in single}
    assert value[scales["c1"]] == value[scales["r1"]]


@pytest.mark.parametrize("bounds", [(2.0, 6.0), (-6.0, -2.0), (0.5, 6.0), (0.0, 6.0)])
def test_a_clip_away_from_zero_keeps_its_bounds(bounds: tuple[float, float]) -> None:
    """Integers always reach to zero, so their saturation does not do what such a Clip does."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
        "low": np.float32(bounds[0]),
        "high": np.float32(bounds[1]),
    }
    nodes = [node("Conv", "x w1", "a"), node("Clip", "a low high", "b"), node("Conv", "b w2", "y")]
    for each in nodes:
        each.name = each.output[0]
    backend = backend_of(model(nodes, {"x": ["n", 3, 12, 12]}, ["y"], constants), images(16))
    feed = images(1, seed=6)[0]
    (expected,) = backend.load(None).predict(feed)
    (found,) = backend.load(default_config(backend)).predict(feed)
    assert np.square(found - expected).mean() < 0.005 * np.square(expected).mean()


def test_what_is_said_of_a_tensor_is_said_where_it_was_measured_elsewhere() -> None:
    nodes = [node("Sub", "x big", "a"), node("Transpose", "a", "t", perm=[1, 0]), node("MatMul", "t w", "y")]
    for each in nodes:
        each.name = each.output[0]
    big = np.zeros((4, 4), np.float32)
    big[0, 0] = 1e9
    feeds = [{"x": np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)} for seed in range(4)]
    constants = {"big": big, "w": np.eye(4, dtype=np.float32)}
    backend = backend_of(model(nodes, {"x": [4, 4]}, ["y"], constants), feeds)
    warnings = backend.load(default_config(backend)).warnings
    assert any("tensor t: " in warning and "mask" in warning for warning in warnings)
