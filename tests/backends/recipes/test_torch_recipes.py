"""Recipes of the PyTorch backend: what they do to the graph, to its constants and to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distune.backends.base import Feed
from distune.backends.pytorch.recipes.equalization import pairs
from distune.backends.pytorch.recipes.layers import layers
from distune.backends.pytorch.recipes.smooth_quant import smoothable
from distune.backends.statistics import CalibrationStatistics, merge
from distune.config.job import ModelSpec, TuningJob
from distune.engine.book import TrialBook
from distune.errors import SpaceError, TrialError
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from distune.space.tuning_space import build_space
from distune.strategies.base import StrategyContext
from distune.strategies.corrections import correction_stage
from tests.backends.torch_models import backend, space

OUTLIER = 60.0


class Convolutions(nn.Module):
    """Three convolutions, ReLU and ReLU6 between them, the second one depthwise, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.three, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(image))
        x = nn.functional.relu6(self.two(x))
        out: torch.Tensor = self.fc(torch.relu(self.three(x)).mean(dim=(2, 3)))
        return out


class Projections(nn.Module):
    """One channel is 60 times as large as the others. Two projections read it, a third one follows the first.

    Args:
        norm: LayerNorm makes the outlier; else it is in the input.
        relu: The third follows the first through a ReLU; else through an addition that both go into.
    """

    def __init__(self, norm: bool = True, relu: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16) if norm else None
        self.one, self.two, self.three = nn.Linear(16, 12), nn.Linear(16, 12, bias=False), nn.Linear(12, 8)
        self.relu = relu
        self.register_buffer("outlier", torch.ones(16))
        with torch.no_grad():
            (self.outlier if self.norm is None else self.norm.weight)[3] = OUTLIER

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x * self.outlier if self.norm is None else self.norm(x)
        one, two = self.one(x), self.two(x)
        return self.three(torch.relu(one) if self.relu else one + two), two


class Made:
    """A backend for a seeded module, calibrated as the engine does it."""

    def __init__(self, module: nn.Module, feeds: Sequence[Feed]) -> None:
        (self.name,) = feeds[0]
        self.feeds = feeds
        self.backend = backend(module.eval(), feeds[0][self.name])
        self.plain = space(self.backend).default()

    def config(self, **recipes: Any) -> TuningConfig:
        """The default config with ``recipes``, calibrated for."""
        config = self.plain.with_recipes(recipes)
        for variant in dict.fromkeys(((), self.backend.variant(config))):
            self.backend.prepare_calibration(config.sampling_size)
            blob = merge([self.backend.calibrate(variant, enumerate(self.feeds))])
            self.backend.set_statistics(variant, config.sampling_size, blob)
        return config

    def graph(self, **recipes: Any) -> torch.fx.GraphModule:
        """The quantized graph."""
        native = self.backend.load(self.config(**recipes)).native
        assert isinstance(native, torch.fx.GraphModule)
        return native

    def rewritten(self, **recipes: Any) -> torch.fx.GraphModule:
        """The fp32 graph that is quantized."""
        return self.backend._variant_under(self.config(**recipes)).model.graph_module

    def error(self, config: TuningConfig) -> float:
        """Mean squared error of the first output over the calibration data."""
        loaded, fp32 = self.backend.load(config), self.backend.load(None)
        return float(np.mean([np.square(loaded.predict(f)[0] - fp32.predict(f)[0]).mean() for f in self.feeds]))


def convolutions(planted: bool = False) -> Made:
    """On images that are not centred; ``planted``: channels of the first two layers have very unlike ranges."""
    torch.manual_seed(3)
    module = Convolutions()
    if planted:
        factors = torch.from_numpy(np.geomspace(0.05, 5, 8).astype(np.float32))
        with torch.no_grad():
            module.one.weight.mul_(factors[:, None, None, None])
            module.one.bias.mul_(factors)
            module.two.weight.div_(factors[:, None, None, None])
    rng = np.random.default_rng(5)
    return Made(module, [{"image": np.abs(rng.normal(size=(8, 3, 8, 8))).astype(np.float32) + 1} for _ in range(3)])


def projections(norm: bool = True, relu: bool = False) -> Made:
    torch.manual_seed(4)
    rng = np.random.default_rng(8)
    feeds = [{"x": rng.normal(size=(8, 5, 16)).astype(np.float32)} for _ in range(4)]
    return Made(Projections(norm, relu), feeds)


def stored(graph: torch.fx.GraphModule, node: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of the weight that a node reads."""
    found = next(each for each in graph.graph.nodes if each.name == node)
    integers, scale = (graph.get_buffer(str(part.target)).numpy() for part in found.args[1].args[:2])
    return integers, scale


def with_weights(config: TuningConfig, granularity: str) -> TuningConfig:
    weight = TensorConfig("int8", "sym", granularity)
    return config.with_ops({n: OpConfig(o.mode, o.activation, weight) for n, o in config.ops if o.weight is not None})


def test_the_bias_takes_the_mean_error_of_the_rounded_weights() -> None:
    made = convolutions()
    plain, corrected = made.graph(), made.graph(fast_bias_correction=True)
    integers, scale = stored(plain, "conv2d_2")
    error = integers.reshape(6, 8) * scale[:, None] - made.backend._model.tensor("three.weight").numpy().reshape(6, 8)
    blob = made.backend.calibrate((), enumerate(made.feeds))
    mean = CalibrationStatistics.from_bytes(blob).channels["1:relu6"].mean
    change = corrected.state_dict()["three.bias"] - plain.state_dict()["three.bias"]
    np.testing.assert_allclose(change.numpy(), -error @ mean, rtol=1e-4, atol=1e-6)


def test_it_lowers_the_error_of_a_model() -> None:
    made = convolutions(planted=True)
    made.plain = with_weights(made.plain, "per_tensor")
    assert made.error(made.config(fast_bias_correction=True)) < 0.5 * made.error(made.config())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_weight_correction_keeps_mean_and_spread(granularity: str) -> None:
    made = convolutions()
    made.plain = with_weights(made.plain, granularity)
    fp32 = made.backend._model.tensor("one.weight").numpy().reshape(8, -1)
    off = []
    for recipes in ({}, {"weight_correction": True}):
        integers, scale = stored(made.graph(**recipes), "conv2d")
        real = integers.reshape(8, -1) * scale[:, None]
        off.append((np.abs(real.mean(1) - fp32.mean(1)).max(), np.abs(real.std(1) - fp32.std(1)).max()))
    assert off[1][0] < off[0][0]
    assert off[1][1] < off[0][1]


def test_adaround_rounds_every_weight_up_or_down_and_loses_less() -> None:
    made = convolutions()
    (nearest, scale), (chosen, _) = (stored(made.graph(**r), "conv2d") for r in ({}, {"adaround": True}))
    exact = made.backend._model.tensor("one.weight").numpy() / scale[:, None, None, None]
    assert np.abs(chosen - exact).max() < 1.001
    assert (chosen != nearest).any()
    assert made.error(made.config(adaround=True)) < made.error(made.config())


def test_adaround_rounds_by_the_own_sampling_size_whatever_was_loaded_before() -> None:
    def loaded(sizes: Sequence[int]) -> Any:
        made = convolutions()
        for size in sizes:
            config = replace(made.plain, sampling_size=size).with_recipes({"adaround": True})
            made.backend.prepare_calibration(size)
            for variant in ((), made.backend.variant(config)):
                blob = made.backend.calibrate(variant, enumerate(made.feeds[:size]))
                made.backend.set_statistics(variant, size, blob)
            chosen = stored(made.backend.load(config).native, "conv2d")[0]
        return chosen

    np.testing.assert_array_equal(loaded((1, 3)), loaded((3,)))
    assert (loaded((1,)) != loaded((3,))).any()


def test_neighbours_are_layers_with_one_activation_between() -> None:
    found = pairs(convolutions().backend._model)
    assert [(pair.first.name, pair.second.name, pair.cut) for pair in found] == [
        ("one", "two", None),
        ("two", "three", 6.0),
    ]


@pytest.mark.parametrize("planted", [True, False])
def test_equalization_leaves_the_fp32_function_and_makes_ranges_alike(planted: bool) -> None:
    made = convolutions(planted)
    plain, equalized = made.backend._model.graph_module, made.rewritten(cross_layer_equalization=True)
    image = torch.from_numpy(made.feeds[0]["image"])
    torch.testing.assert_close(equalized(image), plain(image), rtol=1e-4, atol=1e-4)
    if planted:
        spreads = [g.state_dict()["two.weight"].abs().amax((1, 2, 3)) for g in (plain, equalized)]
        before, after = (float(each.max() / each.min()) for each in spreads)
        assert after < before / 4


def test_per_tensor_weights_lose_less_when_equalized() -> None:
    made = convolutions(planted=True)
    made.plain = with_weights(made.plain, "per_tensor")
    assert made.error(made.config(cross_layer_equalization=True)) < 0.5 * made.error(made.config())


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("folding", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, "auto"])
def test_smoothing_leaves_the_fp32_function(norm: bool, relu: bool, folding: bool, alpha: float | str) -> None:
    made = projections(norm, relu)
    recipes = {"smooth_quant": alpha} | ({} if folding else {"smooth_quant_args": '{"folding": false}'})
    smoothed = made.rewritten(**recipes)
    x = torch.from_numpy(made.feeds[0]["x"])
    for expected, actual in zip(made.backend._model.graph_module(x), smoothed(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)
    inserted = {node.name for node in smoothed.graph.nodes if node.name.endswith("_smoothed")}
    # The norm's output is read by both projections alone; what the third one reads follows a layer through a ReLU.
    assert inserted == {
        *(() if norm and folding else ("layer_norm_smoothed" if norm else "mul_smoothed",)),
        *(() if relu and folding else ("relu_smoothed" if relu else "add_smoothed",)),
    }


def test_a_smoothed_outlier_leaves_the_range_of_the_activation() -> None:
    made = projections()
    ranges = [made.backend._ranges(made.config(**recipes)) for recipes in ({}, {"smooth_quant": 0.5})]
    widths = [found["layer_norm"][1] - found["layer_norm"][0] for found in ranges]
    assert widths[1] < widths[0] / 4
    assert made.error(made.config(smooth_quant=0.5)) < 0.5 * made.error(made.config())


def test_alpha_of_auto_loses_no_more_than_the_default_alpha() -> None:
    made = projections(norm=False)
    assert made.error(made.config(smooth_quant="auto")) < 1.1 * made.error(made.config(smooth_quant=0.5))


def test_alpha_by_block_needs_a_block() -> None:
    made = projections()
    config = made.plain.with_recipes({"smooth_quant": "auto", "smooth_quant_args": '{"do_blockwise": true}'})
    made.config()
    with pytest.raises(TrialError, match="no transformer block"):
        made.backend.load(config)


@pytest.mark.parametrize(
    "recipes",
    [
        {"adaround": True, "fast_bias_correction": True, "weight_correction": True},
        {"cross_layer_equalization": True, "fast_bias_correction": True},
    ],
)
def test_a_saved_config_is_applied_again_without_data(recipes: dict[str, Any]) -> None:
    made = convolutions(planted=True)
    config = made.config(**recipes)
    exported = made.backend.export(config)
    again = convolutions(planted=True).backend.apply(exported.deploy, config)
    assert again.files["state.pt"] == exported.files["state.pt"]
    assert exported.files["state.pt"] != made.backend.export(made.config()).files["state.pt"]


def test_a_smoothed_config_is_applied_again_without_data() -> None:
    made = projections(norm=False)
    config = made.config(smooth_quant="auto", fast_bias_correction=True)
    exported = made.backend.export(config)
    again = projections(norm=False).backend.apply(exported.deploy, config)
    assert again.files["state.pt"] == exported.files["state.pt"]


def test_one_trial_leaves_the_next_one_as_it_was() -> None:
    made = convolutions(planted=True)
    feed = made.feeds[0]
    (before,), (fp32,) = made.backend.load(made.config()).predict(feed), made.backend.load(None).predict(feed)
    made.graph(cross_layer_equalization=True, fast_bias_correction=True, weight_correction=True)
    np.testing.assert_array_equal(made.backend.load(made.config()).predict(feed)[0], before)
    np.testing.assert_array_equal(made.backend.load(None).predict(feed)[0], fp32)


def test_layers_in_floating_point_are_not_corrected() -> None:
    made = convolutions()
    config = made.config(fast_bias_correction=True)
    partly = made.backend.load(config.with_ops({"one": FP32})).native.state_dict()
    fp32 = made.backend._model.graph_module.state_dict()
    torch.testing.assert_close(partly["one.bias"], fp32["one.bias"], rtol=0, atol=0)
    assert not torch.equal(partly["three.bias"], fp32["three.bias"])


def test_a_correction_that_found_nothing_to_do_says_so() -> None:
    made = projections()
    config = made.config(fast_bias_correction=True)
    only = config.with_ops({name: FP32 for name, _ in config.ops if name != "two"})
    assert any("fast_bias_correction found no layer" in warning for warning in made.backend.load(only).warnings)


def test_a_recipe_that_the_model_cannot_use_is_an_error_where_the_user_asked() -> None:
    capability = convolutions().backend.facts().capability
    known = {recipe.name for recipe in capability.recipes}
    assert {"cross_layer_equalization", "adaround", "weight_correction", "fast_bias_correction"} <= known
    with pytest.raises(SpaceError, match="recipe 'dedicated_qdq_pair' cannot be used"):
        build_space(capability, (), "static", {"dedicated_qdq_pair": True}, (8,))
    with pytest.raises(SpaceError, match="recipe 'cross_layer_equalization' cannot be used"):
        build_space(projections().backend.facts().capability, (), "static", {"cross_layer_equalization": True}, (8,))


def test_strategies_correct_a_module_before_anything_falls_back() -> None:
    made = convolutions()
    tuned = space(made.backend)
    job = TuningJob(ModelSpec("pytorch", live=Convolutions()))
    stage = correction_stage(tuned, StrategyContext(TrialBook(100), job=job), tuned.default())
    assert [candidate.label for candidate in stage.candidates] == [
        "fast_bias_correction",
        "cross_layer_equalization and fast_bias_correction",
        "adaround and fast_bias_correction",
    ]


def test_a_list_of_alphas_leads() -> None:
    capability = projections().backend.facts().capability
    recipes = {"smooth_quant": True, "smooth_quant_args": {"alpha": [0.3, 0.7, "auto"]}}
    (leading,) = build_space(capability, (), "static", recipes, (32,)).leading
    assert (leading.name, leading.choices) == ("smooth_quant", (0.3, 0.7, "auto"))


def test_padding_and_geometry_are_those_of_the_convolution() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 0), bias=False)
            self.same = nn.Conv2d(4, 3, 4, padding="same", bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.same(self.conv(x))
            return out

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    made = Made(Odd(), [{"x": rng.normal(size=(2, 2, 9, 9)).astype(np.float32)}])
    model = made.backend._model
    values = {"x": made.feeds[0]["x"]}
    for layer in layers(model):
        weight = layer.matrix(model.tensor(layer.weight).numpy())[0]
        node, source = model.nodes[layer.output], torch.from_numpy(values[layer.input])
        arguments = [source, model.tensor(layer.weight), *node.args[2:]]
        expected = node.target(*arguments).numpy()
        rows = layer.rows(values[layer.input], limit=10**6)[0]
        np.testing.assert_allclose(
            (rows @ weight.T).reshape(2, *expected.shape[2:], -1).transpose(0, 3, 1, 2), expected, atol=1e-4
        )
        values[layer.output] = expected
    assert len(values) == 3


def test_shared_weights_are_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(self.layer(torch.relu(self.layer(x))))
            return out

    model = Made(Tied(), [{"x": np.ones((2, 8), np.float32)}]).backend._model
    assert [layer.name for layer in layers(model)] == ["last"]
    assert [spot.tensor for spot in smoothable(model)] == ["linear_1"]
    assert not pairs(model)


@pytest.mark.parametrize("kind", ["projections", "convolutions"])
def test_recipes_take_no_op_off_its_integer_kernel(kind: str) -> None:
    made = projections(norm=False, relu=True) if kind == "projections" else convolutions(planted=True)
    first = {"smooth_quant": 0.5} if kind == "projections" else {"cross_layer_equalization": True}
    config = made.config(**first, fast_bias_correction=True, weight_correction=True)
    plain, changed = (made.backend.load(each).ops_executed_int8 for each in (made.config(), config))
    assert plain
    assert changed == plain


def test_onnx_gives_the_numbers_of_the_smoothed_and_corrected_model() -> None:
    pytest.importorskip("onnxscript")
    import onnxruntime

    from distune.backends.pytorch.onnx_export import archive_to_onnx

    made = projections(norm=False)
    config = made.config(smooth_quant=0.5, fast_bias_correction=True, weight_correction=True)
    content = archive_to_onnx(made.backend.export(config).files["model.pt2"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (expected, _), (found, _) = made.backend.load(config).predict(made.feeds[0]), session.run(None, dict(made.feeds[0]))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["projections", "convolutions"])
def test_the_compiled_model_agrees_with_the_reference(kind: str) -> None:
    made = projections(norm=False) if kind == "projections" else convolutions(planted=True)
    first = {"smooth_quant": 0.5} if kind == "projections" else {"cross_layer_equalization": True}
    config = made.config(**first, fast_bias_correction=True, weight_correction=True)
    feed = made.feeds[0]
    reference, deployed = (
        made.backend.load(config).predict(feed)[0],
        made.backend.load_deployed(config).predict(feed)[0],
    )
    assert np.abs(reference - deployed).max() < 0.02 * np.abs(reference).max()


@pytest.mark.full
@pytest.mark.assets
def test_the_biases_of_mobilenet_give_back_what_8_bits_take(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(assets))
    from asset_models import load_mobilenet_v1

    def values(images: np.ndarray) -> np.ndarray:
        return np.asarray(images.transpose(0, 3, 1, 2) / 127.5 - 1, np.float32)

    module = load_mobilenet_v1(assets / "models" / "mobilenetv1_cifar10.pt")
    calibration = values(np.load(assets / "data" / "cifar10_calib.npz")["images"][:100])
    evaluation = np.load(assets / "data" / "cifar10_eval.npz")
    images, labels = values(evaluation["images"][:1000]), evaluation["labels"][:1000]
    made = Made(module, [{"x": calibration[start : start + 20]} for start in range(0, 100, 20)])

    def accuracy(config: TuningConfig | None) -> float:
        loaded = made.backend.load(config)
        hits = [
            loaded.predict({"x": images[s : s + 100]})[0].argmax(1) == labels[s : s + 100] for s in range(0, 1000, 100)
        ]
        return float(np.mean(hits))

    fp32, plain = accuracy(None), accuracy(made.config())
    corrected = accuracy(made.config(fast_bias_correction=True))
    print(f"mobilenetv1 in PyTorch: fp32 {fp32:.3f}, int8 {plain:.3f}, with corrected biases {corrected:.3f}")
    assert plain < 0.99 * fp32 <= corrected
