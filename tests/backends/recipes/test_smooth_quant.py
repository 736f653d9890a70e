"""SmoothQuant: outliers leave the activation, the fp32 function stays, and where the division goes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from distune.backends.channel_statistics import channel_key
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import PreparedModel, prepare
from distune.backends.onnxruntime.recipes.layers import constant
from distune.backends.onnxruntime.recipes.smooth_quant import smooth, smoothable
from distune.backends.recipes.smoothing import Factors, alpha_losses, best_alpha, factors
from distune.backends.statistics import CalibrationStatistics, merge
from distune.errors import TrialError
from distune.space.recipes import SmoothQuantArgs
from tests.backends.onnx_models import SAMPLES, attention_model, convolution_model, images, sentences
from tests.backends.recipes.common import OUTLIER, UnderRecipes, linear_model, rows, value


def factors_of(prepared: PreparedModel, *arguments: Any) -> Factors:
    return factors(smoothable(prepared), partial(constant, prepared.index), *arguments)


def outputs(proto: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def statistics(made: UnderRecipes) -> CalibrationStatistics:
    made.config()
    return CalibrationStatistics.from_bytes(made.backend.calibrate((), enumerate(made.feeds)))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("folding", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, "auto"])
def test_the_fp32_function_does_not_change(norm: bool, relu: bool, folding: bool, alpha: float | str) -> None:
    proto = linear_model(norm, relu)
    prepared = prepare(proto)
    channels = statistics(UnderRecipes(proto, rows())).channels
    smoothed = smooth(prepared, factors_of(prepared, channels, alpha, SmoothQuantArgs()), folding)
    for expected, actual in zip(outputs(proto, rows()[0]), outputs(smoothed, rows()[0]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


def test_factors_are_those_of_the_paper() -> None:
    proto = linear_model()
    prepared = prepare(proto)
    seen = statistics(UnderRecipes(proto, rows())).channels
    found = factors_of(prepared, seen, 0.25, SmoothQuantArgs())["n"]
    feeds = np.concatenate([f["x"] for f in rows()]).reshape(-1, 16)
    normed = (feeds - feeds.mean(1, keepdims=True)) / np.sqrt(feeds.var(1, keepdims=True) + 1e-5)
    index = GraphIndex(proto)
    inputs = np.abs(normed * value(index, "gamma") + value(index, "beta")).max(0)
    weights = np.maximum(np.abs(value(index, "w1")).max(1), np.abs(value(index, "w2")).max(1))
    np.testing.assert_allclose(found, inputs**0.25 / weights**0.75, rtol=1e-3)


def test_the_division_is_folded_into_layer_normalization() -> None:
    made = UnderRecipes(linear_model(), rows())
    plain, smoothed = made.graph(), made.graph(smooth_quant=0.5)
    assert [n.op_type for n in smoothed.nodes.values()].count("Mul") == 0 or "r_smoothed/Mul" in smoothed.nodes
    assert "n_smoothed/Mul" not in smoothed.nodes
    assert value(plain, "gamma")[3] == pytest.approx(OUTLIER)
    assert value(smoothed, "gamma")[3] < OUTLIER / 4
    scales = [value(g, g.producer[g.nodes["one"].input[0]].input[1]) for g in (plain, smoothed)]
    assert scales[1] < scales[0] / 3


def test_the_division_is_folded_into_the_layer_before_a_relu() -> None:
    made = UnderRecipes(linear_model(relu=True), rows())
    assert "r_smoothed/Mul" not in made.graph(smooth_quant=0.5).nodes


def test_a_mul_stands_where_somebody_else_reads_or_nothing_can_take_it() -> None:
    made = UnderRecipes(linear_model(norm=False), rows())
    assert "n_smoothed/Mul" in made.graph(smooth_quant=0.5).nodes
    never = made.graph(smooth_quant=0.5, smooth_quant_args='{"folding": false}')
    assert {"n_smoothed/Mul", "r_smoothed/Mul"} <= set(never.nodes)


@pytest.mark.parametrize("alpha", [0.5, "auto"])
def test_the_output_error_falls(alpha: float | str) -> None:
    made = UnderRecipes(linear_model(norm=False, relu=True), rows())
    assert made.error(made.config(smooth_quant=alpha)) < 0.5 * made.error(made.config())


def test_auto_takes_the_alpha_of_least_expected_error_layer_by_layer() -> None:
    made = UnderRecipes(linear_model(), rows())
    prepared = prepare(linear_model())
    seen = statistics(made).channels
    args = SmoothQuantArgs()
    chosen = {}
    for spot in smoothable(prepared):
        weights = [value(prepared.index, layer.weight) for layer in spot.members]
        chosen[spot.tensor] = best_alpha(spot, seen[channel_key(spot.tensor, -1)], weights, args)
    assert set(chosen) == {"n", "r"}
    assert all(alpha in args.alphas for alpha in chosen.values())
    assert chosen["n"] > 0.0  # alpha 0 leaves the outlier in the activation


def test_the_expected_error_ranks_alphas_as_the_measured_one_does() -> None:
    """``auto`` searches by what calibration statistics let expect; the error that is measured is close to the best."""
    made = UnderRecipes(linear_model(norm=False, relu=True), rows())
    measured = {alpha: made.error(made.config(smooth_quant=alpha)) for alpha in SmoothQuantArgs().alphas}
    assert made.error(made.config(smooth_quant="auto")) < 1.25 * min(measured.values()) < 0.5 * max(measured.values())


def test_blockwise_each_block_has_one_alpha() -> None:
    proto = attention_model()
    prepared = prepare(proto)
    seen = statistics(UnderRecipes(proto, sentences())).channels
    spots = {
        spot.tensor: spot for spot in smoothable(prepared) if spot.tensor in factors_of(prepared, seen, 0.5, _ARGS)
    }
    names = [layer.name for spot in spots.values() for layer in spot.members]
    together = factors_of(prepared, seen, "auto", _ARGS, [names])
    (alpha,) = [
        alpha
        for alpha in _ARGS.alphas
        if all(np.array_equal(together[t], factors_of(prepared, seen, alpha, _ARGS)[t]) for t in spots)
    ]
    alone = factors_of(prepared, seen, "auto", _ARGS)
    weights = {t: [value(prepared.index, layer.weight) for layer in spot.members] for t, spot in spots.items()}
    losses = {t: alpha_losses(spots[t], seen[channel_key(t, -1)], weights[t], _ARGS) for t in spots}
    assert alpha == min(_ARGS.alphas, key=lambda a: (np.mean([losses[t][a] for t in spots]), abs(a - 0.5)))
    assert any(not np.array_equal(alone[t], together[t]) for t in spots)


def test_blockwise_without_blocks_is_refused() -> None:
    made = UnderRecipes(linear_model(), rows())
    with pytest.raises(TrialError, match="no transformer block was found"):
        made.graph(smooth_quant="auto", smooth_quant_args='{"do_blockwise": true}')


_ARGS = SmoothQuantArgs()


def test_a_saved_config_makes_the_same_model_without_data() -> None:
    made = UnderRecipes(linear_model(norm=False), rows())
    config = made.config(smooth_quant=0.5)
    exported = made.backend.export(config)
    again = UnderRecipes(linear_model(norm=False), []).backend.apply(exported.deploy, config)
    assert again.files == exported.files


def test_a_model_without_linear_layers_has_no_such_recipe() -> None:
    proto = convolution_model()
    nodes = [node for node in proto.graph.node if node.op_type != "Gemm"]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.output[0].name = "f"
    names = {recipe.name for recipe in UnderRecipes(proto, images()).backend.facts().capability.recipes}
    assert "smooth_quant" not in names
    assert "cross_layer_equalization" in names


def test_statistics_of_a_variant_do_not_depend_on_the_sharding() -> None:
    made = UnderRecipes(linear_model(), rows())
    made.config(smooth_quant=0.5)
    variant = (("smooth_quant", 0.5),)
    made.backend.prepare_calibration(SAMPLES)
    numbered = list(enumerate(rows()))
    whole = made.backend.calibrate(variant, numbered)
    assert merge([made.backend.calibrate(variant, numbered[i::3]) for i in (2, 0, 1)]) == merge([whole])
