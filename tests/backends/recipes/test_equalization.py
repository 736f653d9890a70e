"""Cross-layer equalization: like ranges, the same function, and a Clip that stays what it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import prepare
from distune.backends.onnxruntime.recipes.equalization import equalize, pairs
from distune.backends.statistics import CalibrationStatistics
from tests.backends.onnx_models import convolution_model, images, model
from tests.backends.recipes.common import UnderRecipes, rows, value, weight_of, with_weights


def clipped(planted: bool = True, cut: float = 2.0) -> onnx.ModelProto:
    """``convolution_model`` with Clip(0, cut) for Relu."""
    proto = convolution_model(planted)
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(["zero", "cut"])
    for name, number in (("zero", 0.0), ("cut", cut)):
        proto.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [number]))
    return proto


def run(proto: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in images()])


def equalized(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = UnderRecipes(proto, images())
    blob = made.backend.calibrate((), enumerate(images()))
    return equalize(prepare(proto), CalibrationStatistics.from_bytes(blob).channels)


@pytest.mark.parametrize("proto", [convolution_model(), convolution_model(planted=True), clipped(), clipped(False, 4)])
def test_the_fp32_function_does_not_change(proto: onnx.ModelProto) -> None:
    np.testing.assert_allclose(run(equalized(proto)), run(proto), rtol=1e-3, atol=1e-3)


def test_pairs_are_layers_with_one_activation_between() -> None:
    found = pairs(prepare(convolution_model()))
    assert [(pair.first.name, pair.second.name) for pair in found] == [("conv1", "conv2"), ("conv2", "conv3")]


def test_a_layer_that_adds_a_computed_tensor_is_left_alone() -> None:
    rng = np.random.default_rng(4)
    arrays = {name: rng.normal(size=(16, 16)).astype(np.float32) for name in ("w1", "w2")}
    nodes = [
        helper.make_node("Tanh", ["x"], ["side"], "tanh"),
        helper.make_node("Gemm", ["x", "w1", "side"], ["h"], "one"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w2"], ["y"], "two"),
    ]
    assert pairs(prepare(model(nodes, {"x": ["batch", 16]}, ["y"], arrays))) == ()


def test_a_weight_that_the_model_gives_as_an_output_stays() -> None:
    proto = convolution_model()
    proto.graph.output.append(helper.make_tensor_value_info("w2", onnx.TensorProto.FLOAT, None))
    assert pairs(prepare(proto)) == ()


def test_channels_get_like_ranges() -> None:
    def spread(proto: onnx.ModelProto) -> float:
        peaks = np.abs(value(GraphIndex(proto), "w2")).max((1, 2, 3))
        return float(peaks.max() / peaks.min())

    before, after = convolution_model(planted=True), equalized(convolution_model(planted=True))
    assert spread(after) < spread(before) / 4


def test_a_channel_that_reaches_the_cut_of_a_clip_stays() -> None:
    before, after = clipped(), equalized(clipped())
    bias = [value(GraphIndex(proto), "b1") for proto in (before, after)]
    weights = [value(GraphIndex(proto), "w1") for proto in (before, after)]
    same = np.isclose(weights[0], weights[1]).all((1, 2, 3))
    assert np.isclose(bias[0], bias[1])[same].all()
    assert [node.op_type for node in after.graph.node].count("Clip") == 2


def test_per_tensor_weights_lose_less() -> None:
    made = UnderRecipes(convolution_model(planted=True), images())
    made.plain = with_weights(made.plain, "per_tensor")
    assert made.error(made.config(cross_layer_equalization=True)) < 0.75 * made.error(made.config())


def test_the_graph_that_is_quantized_is_the_equalized_one() -> None:
    made = UnderRecipes(convolution_model(planted=True), images())
    scales = [weight_of(made.graph(**r), "conv2")[1] for r in ({}, {"cross_layer_equalization": True})]
    assert scales[1].max() / scales[1].min() < scales[0].max() / scales[0].min() / 4


def test_a_saved_config_makes_the_same_model_without_data() -> None:
    made = UnderRecipes(clipped(), images())
    config = made.config(cross_layer_equalization=True)
    exported = made.backend.export(config)
    assert UnderRecipes(clipped(), []).backend.apply(exported.deploy, config).files == exported.files


def test_neighbours_without_an_activation_are_equalized_again_from_a_saved_config() -> None:
    rng = np.random.default_rng(4)
    second = rng.normal(size=(12, 8)) * np.geomspace(1, 100, 12)[:, None]
    arrays = {"w1": rng.normal(size=(16, 12)).astype(np.float32), "w2": second.astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "one"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], "two"),
    ]
    made = UnderRecipes(model(nodes, {"x": ["batch", 5, 16]}, ["y"], arrays), rows())
    assert len(pairs(made.backend._model)) == 1
    config = made.config(cross_layer_equalization=True)
    exported = made.backend.export(config)
    assert UnderRecipes(made.backend._user_model, []).backend.apply(exported.deploy, config).files == exported.files
