"""Weight-only quantization of modules: what is offered, that layers compute just the quantized weight, and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from distune.backends.pytorch.capability import inspect  # noqa: E402
from distune.backends.pytorch.model import LoadedModule  # noqa: E402
from distune.backends.pytorch.packed import Kind, int4_runs, int8_runs, kernel_of, linear_of  # noqa: E402
from distune.backends.pytorch.program import ExportedModule, copied, export_module  # noqa: E402
from distune.backends.pytorch.runnable import state_bytes  # noqa: E402
from distune.backends.pytorch.weight_only import (  # noqa: E402
    STORAGES,
    WeightOnlyWriter,
    calibrated_inputs,
    collect_moments,
    weight_only_capability,
    with_float_layers,
)
from distune.backends.second_moments import SecondMoments  # noqa: E402
from distune.backends.statistics import CalibrationStatistics, merge  # noqa: E402
from distune.backends.weight_only.grouped import GroupedWeight, WeightFormat  # noqa: E402
from distune.backends.weight_only.hqq import hqq  # noqa: E402
from distune.backends.weight_only.rtn import rtn  # noqa: E402
from distune.errors import ModelError, TrialError  # noqa: E402
from distune.space.capability import Capability  # noqa: E402
from distune.space.op_config import FP32, OpConfig, TensorConfig  # noqa: E402

WIDTH = 64


class Net(nn.Module):
    """Two layers in a row, the second called twice, and a head of an odd width without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, 128), nn.Linear(128, 128)
        self.head = nn.Linear(128, 5, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(self.table(tokens)))
        hidden = self.second(torch.relu(self.second(hidden)))
        out: torch.Tensor = self.head(hidden)
        return out


@pytest.fixture(scope="module")
def model() -> ExportedModule:
    torch.manual_seed(5)
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    return export_module(LoadedModule(Net().eval(), (tokens,), ("tokens",), {"tokens": (0, 1)}))


def batches(count: int = 6) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        yield number, {"tokens": rng.integers(0, 11, (4, 6))}


def weight(channels: int = 128, outputs: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, outputs)).astype(np.float32)


def offered(model: ExportedModule, recipes: Mapping[str, Any] | None = None, calibrated: bool = True) -> Capability:
    return weight_only_capability(model, inspect(model), recipes or {}, calibrated)


def chosen(algorithm: str = "RTN", bits: int = 4, group: int = 32, scheme: str = "asym") -> OpConfig:
    return OpConfig("weight_only", None, TensorConfig("int", scheme, "per_channel", algorithm, bits, group))


def moments_of(model: ExportedModule) -> CalibrationStatistics:
    return collect_moments(model, calibrated_inputs(model, offered(model)), batches())


def written(model: ExportedModule, ops: Mapping[str, OpConfig], recipes: Mapping[str, Any] | None = None) -> Any:
    writer, statistics = WeightOnlyWriter(model), moments_of(model)
    weights = writer.quantized(ops, recipes or {}, statistics.moments.get, 24)
    module = model.fresh()
    return module, weights, writer.write(module, weights, recipes or {})


# ------------------------------------------------------------------------------------------------------------ layers


def test_this_torch_runs_both_kernels() -> None:
    """What the other tests and the figures of the examples build on; torch 2.13 has them for every x86 CPU."""
    assert int4_runs()
    assert int8_runs()


@pytest.mark.parametrize("kind", ["int4", "int8", "packed", "dequantized"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_computes_with_just_the_quantized_weight(kind: Kind, with_bias: bool) -> None:
    form = WeightFormat(8, -1, "sym") if kind == "int8" else WeightFormat(4, 32, "asym")
    made = rtn(weight(), form)
    scale = np.random.default_rng(1).uniform(0.5, 2, 128).astype(np.float32)
    made = GroupedWeight(made.integers, made.scales, made.zero_points, form, scale)
    bias = torch.arange(24.0) if with_bias else None
    x = np.random.default_rng(2).normal(size=(2, 3, 128)).astype(np.float32)
    with torch.inference_mode():
        actual = linear_of(made, bias, kind)(torch.from_numpy(x)).numpy()
    expected = x @ made.effective() + (np.arange(24.0) if with_bias else 0)
    assert actual.shape == (2, 3, 24)
    # The kernels round inputs, scales and outputs to bfloat16.
    allowed = 0.02 * np.abs(expected).max() if kind.startswith("int") else 1e-3
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=allowed)


@pytest.mark.parametrize("outputs", [1, 5, 16, 65])
@pytest.mark.parametrize("form", [WeightFormat(4, 32, "sym"), WeightFormat(4, -1, "asym"), WeightFormat(4, 64, "asym")])
def test_the_int4_kernel_takes_any_number_of_outputs(outputs: int, form: WeightFormat) -> None:
    values = weight(192, outputs)
    for made in (rtn(values, form), *([hqq(values, form)] if form.scheme == "asym" else [])):
        x = np.random.default_rng(2).normal(size=(7, 192)).astype(np.float32)
        with torch.inference_mode():
            actual = linear_of(made, None, "int4")(torch.from_numpy(x)).numpy()
        expected = x @ made.effective()
        np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scheme", ["sym", "asym"])
def test_packed_bits_are_those_that_were_asked_for(bits: int, scheme: Any) -> None:
    form = WeightFormat(bits, 48, scheme)  # neither a multiple of a byte nor of the width of the weight
    made = rtn(weight(100, 24), form)
    layer = linear_of(made, None, "packed")
    np.testing.assert_array_equal(layer.float_weight().numpy(), made.dequantized().T)
    assert layer.packed.nbytes == bits * 100 * 24 // 8


def test_kernels_take_formats_that_they_can_hold() -> None:
    assert kernel_of(WeightFormat(4, 32, "asym"), 192) == "int4"
    assert kernel_of(WeightFormat(4, 16, "asym"), 192) is None  # groups of 16 are too small
    assert kernel_of(WeightFormat(4, 128, "asym"), 192) is None  # the last group would be shorter
    assert kernel_of(WeightFormat(8, -1, "sym"), 192) == "int8"
    assert kernel_of(WeightFormat(8, 32, "sym"), 192) is None
    assert kernel_of(WeightFormat(3, 32, "sym"), 192) is None


# -------------------------------------------------------------------------------------------------------- capability


def test_linear_is_offered_each_by_itself_and_the_rest_says_why_not(model: ExportedModule) -> None:
    capability = offered(model)
    assert [op.name for op in capability.ops] == ["first", "second", "second#1", "head"]
    assert all(op.group == op.name and op.options[-1] == FP32 for op in capability.ops)
    assert {name for name, _, _ in capability.excluded} >= {"table"}
    first = capability.ops[0].options[0].weight
    assert first is not None
    assert (first.bits, first.group_size, first.algorithm) == (4, 32, "RTN")


def test_without_data_only_what_needs_none_is_offered(model: ExportedModule) -> None:
    def algorithms(calibrated: bool) -> set[str]:
        ops = offered(model, calibrated=calibrated).ops
        return {option.weight.algorithm for op in ops for option in op.options if option.weight}

    assert algorithms(True) == {"RTN", "GPTQ", "AWQ", "HQQ"}
    assert algorithms(False) == {"RTN", "HQQ"}


def test_every_width_is_offered_packed_and_those_of_kernels_native(model: ExportedModule) -> None:
    def widths(recipes: Mapping[str, Any]) -> set[int]:
        return {o.weight.bits for op in offered(model, recipes).ops for o in op.options if o.weight}

    assert widths({}) == set(range(2, 9))
    assert widths({"weight_only_storage": "native"}) == {4, 8}


@pytest.mark.parametrize("recipes", [{"weight_only_storage": "zip"}, {"gptq_args": {"damp": 0.1}}])
def test_a_recipe_of_another_value_is_refused(model: ExportedModule, recipes: Mapping[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(recipes))):
        offered(model, recipes)


# ----------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("algorithm", ["RTN", "GPTQ", "AWQ", "HQQ"])
def test_the_graph_computes_with_the_quantized_weights(model: ExportedModule, algorithm: str) -> None:
    ops = {name: chosen(algorithm) for name in ("first", "second", "second#1", "head")}
    module, weights, remarks = written(model, ops)
    net = Net().eval()
    net.load_state_dict(model.program.state_dict)
    tokens = torch.from_numpy(next(batches())[1]["tokens"])
    with torch.inference_mode():
        hidden = net.table(tokens).numpy()
        hidden = np.maximum(hidden @ weights["first"].effective() + net.first.bias.numpy(), 0)
        hidden = np.maximum(hidden @ weights["second"].effective() + net.second.bias.numpy(), 0)
        hidden = hidden @ weights["second#1"].effective() + net.second.bias.numpy()
        expected = hidden @ weights["head"].effective()
        np.testing.assert_allclose(module(tokens).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert remarks == ()


def test_calls_of_one_module_are_calibrated_with_their_own_inputs(model: ExportedModule) -> None:
    ops = {name: chosen("GPTQ", bits=4) for name in ("second", "second#1")}
    _, weights, _ = written(model, ops)
    assert not np.array_equal(weights["second"].integers, weights["second#1"].integers)


def test_the_model_gets_smaller_and_the_fp32_graph_stays(model: ExportedModule) -> None:
    before = state_bytes(model.graph_module)
    ops = {name: chosen() for name in ("first", "second", "second#1", "head")}
    module, _, _ = written(model, ops)
    assert state_bytes(model.graph_module) == before
    linear = 4 * (64 * 128 + 128 * 128 + 128 * 5)
    assert state_bytes(module) < before - linear * 0.4  # the second layer is stored twice, once a call
    assert not any("first.weight" in name for name, _ in module.named_parameters())


def test_what_saves_nothing_or_rounds_more_is_labelled(model: ExportedModule) -> None:
    ops = {"first": chosen(), "head": chosen()}
    remarks = {storage: written(model, ops, {"weight_only_storage": storage})[2] for storage in STORAGES}
    assert remarks["packed"] == ()
    assert remarks["native"] == ("weights run on the int4 kernel, inputs rounded to bfloat16: first, head",)
    assert remarks["dequantized"] == ("weights stored dequantized, as fp32: no bytes are saved: first, head",)
    with pytest.raises(TrialError, match="no integer kernel holds 3 bits"):
        written(model, {"first": chosen(bits=3)}, {"weight_only_storage": "native"})


def test_what_is_judged_has_the_numbers_of_what_is_packed(model: ExportedModule) -> None:
    writer, tokens = WeightOnlyWriter(model), torch.from_numpy(next(batches())[1]["tokens"])
    weights = writer.quantized({"first": chosen(bits=3), "head": chosen()}, {}, _no_moments, 0)
    packed = model.fresh()
    writer.write(packed, weights, {})
    judged = with_float_layers(copied(packed))
    with torch.inference_mode():
        assert torch.equal(packed(tokens), judged(tokens))
    assert state_bytes(packed) < state_bytes(judged)


def test_the_quantized_graph_can_be_exported_and_loaded_again(model: ExportedModule, tmp_path: Path) -> None:
    recipes = {"weight_only_storage": "packed"}
    ops = {"first": chosen(), "second": chosen(bits=3), "head": chosen(bits=8, group=-1, scheme="sym")}
    module, _, _ = written(model, ops, recipes)
    tokens = torch.from_numpy(next(batches())[1]["tokens"])
    shapes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(module, (tokens,), dynamic_shapes=shapes), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(tokens[:3, :5]), module(tokens[:3, :5]))


def test_moments_are_the_same_bits_for_any_sharding(model: ExportedModule) -> None:
    nodes = calibrated_inputs(model, offered(model))
    every = list(batches())
    whole = collect_moments(model, nodes, every).to_bytes()
    shards = [collect_moments(model, nodes, every[shard::3]).to_bytes() for shard in (2, 0, 1)]
    assert merge(shards) == whole


def test_a_config_that_does_not_fit_is_refused(model: ExportedModule) -> None:
    writer = WeightOnlyWriter(model)
    with pytest.raises(TrialError, match="no op 'third'"):
        writer.quantized({"third": chosen()}, {}, _no_moments, 0)
    with pytest.raises(TrialError, match=r"'table' \(Embedding\) has no weight"):
        writer.quantized({"table": chosen()}, {}, _no_moments, 0)
    with pytest.raises(TrialError, match="'first': GPTQ needs calibration data"):
        writer.quantized({"first": chosen("GPTQ")}, {}, _no_moments, 0)


def _no_moments(name: str) -> SecondMoments | None:
    return None
