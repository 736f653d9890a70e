"""Adaptive rounding: never worse than to nearest, close to the optimum, and within a step of the weight."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import onnxruntime as ort
import pytest

from distune.backends.onnxruntime.calibration import with_outputs
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.recipes.layers import layers
from distune.backends.recipes.rounding import adaptive_rounding, mean_preserving_rounding, output_error
from distune.space.op_config import TuningConfig
from tests.backends.onnx_models import convolution_model, images
from tests.backends.recipes.common import UnderRecipes, value, weight_of, with_weights

LIMITS = (-127, 127)


def problem(outputs: int, inputs: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weights, scales, zero points and second moments of correlated inputs that are not centred."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(300, inputs)) @ rng.normal(size=(inputs, inputs)) + 1
    weight = rng.normal(size=(outputs, inputs))
    return weight, np.full((outputs, 1), 0.3), np.zeros((outputs, 1)), data.T @ data / 300


@pytest.mark.parametrize("seed", range(5))
def test_it_lowers_the_output_error_of_every_output(seed: int) -> None:
    weight, scale, zero, moments = problem(12, 100, seed)
    chosen = adaptive_rounding(weight, scale, zero, LIMITS, moments)
    nearest = np.rint(weight / scale) * scale
    ours, theirs = (output_error(weight, each, moments) for each in (chosen * scale, nearest))
    assert (ours < theirs).all()
    assert ours.mean() < 0.6 * theirs.mean()


def test_every_weight_is_rounded_up_or_down() -> None:
    weight, scale, zero, moments = problem(12, 100, 0)
    chosen = adaptive_rounding(weight, scale, zero + 3, (-5, 6), moments)
    exact = np.clip(weight / scale + 3, -5, 6)
    assert (np.abs(chosen - exact) < 1 + 1e-9).all()
    assert chosen.min() >= -5
    assert chosen.max() <= 6


def test_it_comes_near_the_best_of_all_roundings() -> None:
    gaps = []
    for seed in range(12):
        weight, scale, zero, moments = problem(1, 8, seed)
        below = np.floor(weight / scale)
        best = min(output_error(weight, (below + up) * scale, moments)[0] for up in product((0, 1), repeat=8))
        chosen = adaptive_rounding(weight, scale, zero, LIMITS, moments) * scale
        ours, nearest = (output_error(weight, w, moments)[0] for w in (chosen, np.rint(weight / scale) * scale))
        assert ours <= nearest
        gaps.append((ours - best) / best)
    assert np.median(gaps) < 0.05


def test_mean_preserving_rounding_keeps_the_sum_of_each_row() -> None:
    weight, scale, zero, _ = problem(12, 100, 1)
    chosen = mean_preserving_rounding(weight, scale, zero, LIMITS)
    assert (np.abs((chosen - weight / scale).sum(1)) <= 0.5 + 1e-9).all()
    assert np.abs(chosen - np.rint(weight / scale)).max() <= 1


@pytest.mark.parametrize("op", ["conv1", "conv2", "conv3", "fc"])
def test_the_graph_holds_the_chosen_integers_at_the_same_scale(op: str) -> None:
    made = UnderRecipes(convolution_model(), images())
    plain, rounded = (weight_of(made.graph(**r), op) for r in ({}, {"adaround": True}))
    np.testing.assert_array_equal(plain[1], rounded[1])
    difference = rounded[0].astype(int) - plain[0].astype(int)
    assert difference.any()
    assert np.abs(difference).max() == 1


def test_the_moments_of_a_convolution_are_those_of_its_patches() -> None:
    made = UnderRecipes(convolution_model(), images())
    config = made.config(adaround=True)
    graph = made.backend._graph(config).model
    layer = next(layer for layer in layers(graph) if layer.name == "conv1")
    data = images()[0]["x"]
    patches = layer.rows(data, 10**9)[0]
    weight = value(graph.index, layer.weight)
    session = ort.InferenceSession(with_outputs(graph.proto, ["c1"]).SerializeToString())
    expected = session.run(["c1"], {"x": data})[0]
    actual = patches @ layer.matrix(weight)[0].T + value(graph.index, layer.bias)
    np.testing.assert_allclose(actual.reshape(4, 12, 12, 8).transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)


def test_it_lowers_the_error_of_a_model() -> None:
    made = UnderRecipes(convolution_model(), [{"x": np.abs(feed["x"])} for feed in images()])
    made.plain = with_weights(made.plain, "per_tensor")
    assert made.error(made.config(adaround=True)) < made.error(made.config())


def test_rounding_is_that_of_the_own_sampling_size_whatever_was_loaded_before() -> None:
    feeds = images(2)
    feeds = [feeds[0], {"x": feeds[1]["x"] * np.linspace(0, 3, feeds[1]["x"].shape[-1], dtype=np.float32)}]
    few, many = 4, 8

    def made() -> tuple[UnderRecipes, dict[int, TuningConfig]]:
        under, configs = UnderRecipes(convolution_model(), feeds), {}
        for size, count in ((few, 1), (many, 2)):
            configs[size] = replace(under.plain, sampling_size=size).with_recipes({"adaround": True})
            under.backend.prepare_calibration(size)
            for variant in ((), under.backend.variant(configs[size])):
                blob = under.backend.calibrate(variant, enumerate(feeds[:count]))
                under.backend.set_statistics(variant, size, blob)
        return under, configs

    def integers(under: UnderRecipes, config: TuningConfig) -> np.ndarray:
        return weight_of(GraphIndex(under.backend.load(config).native), "conv2")[0]

    one, configs = made()
    first, second = integers(one, configs[few]), integers(one, configs[many])
    other, configs = made()
    np.testing.assert_array_equal(second, integers(other, configs[many]))
    assert (first != second).any()
