"""Bias and weight correction: what they do to the constants of the graph and to the outputs."""

from __future__ import annotations

import numpy as np
import pytest

from distune.backends.onnxruntime.recipes.layers import layers
from distune.backends.statistics import CalibrationStatistics
from distune.errors import SpaceError
from distune.space.op_config import FP32
from distune.space.tuning_space import build_space
from tests.backends.onnx_models import Feeds, convolution_model, images
from tests.backends.recipes.common import UnderRecipes, linear_model, rows, value, weight_of, with_weights


def shifted(count: int = 3) -> Feeds:
    """Images that are not centred: weights that are rounded then shift the outputs' means."""
    return [{"x": np.abs(feed["x"]) + 1} for feed in images(count)]


def test_the_bias_takes_the_mean_error_of_the_rounded_weights() -> None:
    made = UnderRecipes(convolution_model(), shifted())
    plain, corrected = made.graph(), made.graph(fast_bias_correction=True)
    biases = []
    for graph in (plain, corrected):
        dequantize = graph.producer[graph.nodes["fc"].input[2]]
        integers, scale = (value(graph, name) for name in dequantize.input[:2])
        biases.append(integers * scale)
    weight = weight_of(plain, "fc")
    error = (weight[0] - weight[2].reshape(-1, 1).astype(float)) * weight[1].reshape(-1, 1)
    error = error - value(made.backend._model.index, "wf")
    blob = made.backend.calibrate((), enumerate(made.feeds))
    mean = CalibrationStatistics.from_bytes(blob).channels["-1:f"].mean
    np.testing.assert_allclose(biases[1] - biases[0], -error @ mean, atol=2 * np.abs(scale).max())


def test_it_lowers_the_error_of_a_model() -> None:
    made = UnderRecipes(convolution_model(planted=True), shifted())
    made.plain = with_weights(made.plain, "per_tensor")
    assert made.error(made.config(fast_bias_correction=True)) < made.error(made.config())


def test_the_bias_of_a_matmul_is_the_add_behind_it() -> None:
    made = UnderRecipes(linear_model(), [{"x": feed["x"] + 2} for feed in rows()])
    plain, corrected = made.graph(), made.graph(fast_bias_correction=True)
    (layer,) = [each for each in layers(made.backend._model) if each.bias]
    assert layer.adder == "one_bias"
    names = {name for name in plain.initializers if name.startswith("b1")}
    assert any(not np.array_equal(value(plain, name), value(corrected, name)) for name in names)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_weight_correction_keeps_mean_and_spread(granularity: str) -> None:
    made = UnderRecipes(convolution_model(), images())
    made.plain = with_weights(made.plain, granularity)
    fp32 = value(made.backend._model.index, "w1").reshape(8, -1)
    stats = []
    for recipes in ({}, {"weight_correction": True}):
        integers, scale, _ = weight_of(made.graph(**recipes), "conv1")
        integers = integers[:, :3]  # a fourth input channel is there for the kernel
        real = integers.reshape(8, -1) * (scale.reshape(-1, 1) if scale.ndim else scale)
        stats.append((np.abs(real.mean(1) - fp32.mean(1)).max(), abs(real.std() - fp32.std())))
    assert stats[1][0] < stats[0][0]
    assert stats[1][1] <= stats[0][1] + 1e-6


def test_scale_and_bias_stay_in_step() -> None:
    made = UnderRecipes(convolution_model(), images())
    graph = made.graph(weight_correction=True)
    node = graph.nodes["conv1"]
    scales = [value(graph, graph.producer[name].input[1]) for name in node.input]
    np.testing.assert_allclose(scales[2], scales[0] * scales[1], rtol=1e-5)


def test_corrections_are_saved_with_the_config() -> None:
    recipes = {"adaround": True, "fast_bias_correction": True, "weight_correction": True}
    made = UnderRecipes(convolution_model(), shifted())
    config = made.config(**recipes)
    exported = made.backend.export(config)
    again = UnderRecipes(convolution_model(), []).backend.apply(exported.deploy, config)
    assert again.files == exported.files
    assert exported.files != made.backend.export(made.config()).files


def test_a_mode_that_cannot_use_them_is_told_where_the_user_asked() -> None:
    capability = UnderRecipes(linear_model(), rows()).backend.facts().capability
    with pytest.raises(SpaceError, match="recipe 'fast_bias_correction' cannot be used"):
        build_space(capability, (), "dynamic", {"fast_bias_correction": True}, (8,))
    build_space(capability, (), "dynamic", {"fast_bias_correction": False}, (8,))


def test_a_correction_that_found_nothing_to_do_says_so() -> None:
    made = UnderRecipes(convolution_model(), images())
    config = made.config(fast_bias_correction=True)
    only = config.with_ops({name: FP32 for name, _ in config.ops if name != "conv3"})
    loaded = made.backend.load(only)
    assert any("fast_bias_correction found no layer" in warning for warning in loaded.warnings)
