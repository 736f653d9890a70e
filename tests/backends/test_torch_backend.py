"""The PyTorch backend: capability, calibration, the reference graph and what is deployed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distune.backends.pytorch.backend import PyTorchBackend
from distune.backends.statistics import merge
from distune.config.job import Constraint
from distune.errors import UsageError
from distune.space.op_config import FP32, OpConfig
from tests.backends.torch_models import (
    Attention,
    Constants,
    Gated,
    Recurrent,
    backend,
    batches,
    calibrated,
    images,
    residual,
    space,
)


@pytest.fixture(scope="module")
def made() -> PyTorchBackend:
    return backend(residual(), images(2))


def test_what_one_kernel_computes_is_one_group(made: PyTorchBackend) -> None:
    groups = {op.name: op.group for op in made.facts().capability.ops}
    assert groups == {
        "conv1": "conv1",
        "conv2": "conv2",
        "add": "conv2",
        "pool": "conv2",
        "mean": "conv2",
        "fc": "fc",
    }


def test_what_is_not_quantized_is_listed_with_the_reason() -> None:
    capability = backend(Recurrent(), np.ones((2, 3, 4), np.float32)).facts().capability
    assert [op.name for op in capability.ops] == ["first", "last"]
    reasons = {name: reason for name, _, reason in capability.excluded}
    assert "no maintained integer kernel" in reasons["lstm"]


def test_shards_merge_to_the_statistics_of_one_sweep(made: PyTorchBackend) -> None:
    data = batches()
    whole = merge([made.calibrate((), data)])
    assert merge([made.calibrate((), data[1::2]), made.calibrate((), data[::2])]) == whole


def test_calibrating_layer_by_layer_gives_the_same_model(made: PyTorchBackend) -> None:
    config = calibrated(made, batches())
    layer_wise = config.with_recipes({"layer_wise_quant": True})
    variant = made.variant(layer_wise)
    made.set_statistics(variant, config.sampling_size, made.calibrate(variant, batches()))
    feed = {"image": images(16, 9)}
    (expected,), (found,) = made.load(config).predict(feed), made.load(layer_wise).predict(feed)
    assert expected.tobytes() == found.tobytes()


def test_the_reference_graph_is_near_fp32_and_stores_integers(made: PyTorchBackend) -> None:
    config = calibrated(made, batches())
    quantized, fp32 = made.load(config), made.load(None)
    feed = {"image": images(16, 9)}
    (expected,), (found,) = fp32.predict(feed), quantized.predict(feed)
    error = np.abs(found - expected).max()
    assert 0 < error < 0.1 * np.abs(expected).max()
    assert {t.dtype for t in quantized.native.state_dict().values()} >= {torch.int8}


def test_every_option_of_every_op_can_be_applied(made: PyTorchBackend) -> None:
    config = calibrated(made, batches())
    feed = {"image": images(4, 9)}
    (expected,) = made.load(None).predict(feed)
    options = {op.name: op.options for op in made.facts().capability.ops}
    longest = max(map(len, options.values()))
    for number in range(longest):
        changes = {name: each[number] for name, each in options.items() if number < len(each)}
        static = {name: option for name, option in changes.items() if option.mode != "dynamic" or name == "fc"}
        (found,) = made.load(config.with_ops(static)).predict(feed)
        assert np.abs(found - expected).max() < 0.3 * np.abs(expected).max(), static


def test_masks_of_minus_infinity_set_no_range() -> None:
    ids, mask = np.ones((2, 6), np.int64), np.ones((2, 6), np.int64)
    mask[:, 4:] = 0
    attention = backend(Attention().eval(), {"ids": ids, "mask": mask})
    capability = attention.facts().capability
    assert [op.name for op in capability.ops] == ["table", "q", "k", "v"]
    config = calibrated(attention, [(0, {"ids": ids, "mask": mask})])
    (out,) = attention.load(config).predict({"ids": ids, "mask": mask})
    assert np.isfinite(out).all()


def test_a_saved_config_gives_the_same_module_without_data(made: PyTorchBackend) -> None:
    config = calibrated(made, batches())
    exported = made.export(config)
    fresh = backend(residual(), images(2))
    assert fresh.apply(exported.deploy, config).files["state.pt"] == exported.files["state.pt"]


def test_the_lowered_graph_tells_what_runs_on_integers(made: PyTorchBackend) -> None:
    config = calibrated(made, batches())
    assert made.load(config).ops_executed_int8 == 3
    partly = made.load(config.with_ops({"conv1": FP32}))
    assert partly.ops_executed_int8 == 2


def test_linear_on_sequences_is_found_in_the_lowered_graph() -> None:
    feed = {"ids": np.ones((2, 6), np.int64), "mask": np.ones((2, 6), np.int64)}
    attention = backend(Attention().eval(), feed)
    loaded = attention.load(calibrated(attention, [(0, feed)]))
    assert (loaded.ops_executed_int8, set(loaded.reasons)) == (3, {"table"})


def test_bf16_runs_kernels_in_bf16() -> None:
    rule = Constraint("op", "conv1", {"dtype": ("bf16", "int8")}, {"dtype": ("bf16", "uint8")})
    halves = backend(residual(), images(2), constraints=(rule,))
    config = calibrated(halves, batches())
    config = config.with_ops({"conv1": OpConfig("bf16")})
    kernels = halves.load(config).kernels
    convolutions = [dtype for name, dtype in kernels if "conv" in name and "qconv" not in name]
    assert "bfloat16" in convolutions, kernels


def test_dynamic_quantizes_linear_alone(made: PyTorchBackend) -> None:
    dynamic = space(made, "dynamic").default()
    assert dynamic.quantized_ops == ("fc",)
    (found,) = made.load(dynamic).predict({"image": images(4)})
    assert np.isfinite(found).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="needs a GPU"):
        backend(residual(), images(2), device="gpu")


def test_the_digest_is_that_of_the_weights() -> None:
    other = residual()
    with torch.no_grad():
        other.fc.bias.add_(1)
    digests = {backend(module, images(2)).facts().digest for module in (residual(), residual(), other)}
    assert len(digests) == 2


def test_tensors_that_are_no_parameters_count_in_the_digest() -> None:
    digests = set()
    for attribute, hidden, written in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0)):
        made = backend(Constants(attribute, hidden, written), images(2).reshape(2, -1)[:, :4])
        digests.add(made.facts().digest)
    assert len(digests) == 4


@pytest.mark.parametrize("changed", ["second.1.weight", "first.0.bias", "gate.shift"])
def test_all_of_a_module_that_is_taken_apart_counts_in_the_digest(changed: str) -> None:
    digests = set()
    for difference in (0, 0, 1):
        torch.manual_seed(0)
        module = Gated()
        owner, _, name = changed.rpartition(".")
        with torch.no_grad():
            getattr(module.get_submodule(owner), name).add_(difference)
        made = backend(module, images(2).reshape(2, -1)[:, :4], partition="auto")
        digests.add(made.facts().digest)
    assert len(digests) == 2


@pytest.mark.parametrize("partition", ["none", "auto"])
def test_the_users_module_keeps_its_modes_and_is_judged_in_eval_mode(partition: str) -> None:
    module = Gated(dropout=0.5) if partition == "auto" else residual()
    feed = images(2).reshape(2, -1)[:, :4] if partition == "auto" else images(2)
    module.eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(feed)).numpy()
    module.train()
    next(iter(module.children())).eval()
    modes = [each.training for each in module.modules()]
    made = backend(module, feed, partition=partition)
    assert [each.training for each in module.modules()] == modes
    (found,) = made.load(None).predict({made.facts().inputs[0].name: feed})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [each.training for each in module.modules()] == modes


@pytest.mark.full
def test_the_compiled_model_agrees_with_the_reference(made: PyTorchBackend) -> None:
    config = calibrated(made, batches())
    feed = {"image": images(16, 9)}
    (reference,), (deployed,) = made.load(config).predict(feed), made.load_deployed(config).predict(feed)
    assert np.abs(reference - deployed).max() < 0.02 * np.abs(reference).max()
    assert made.load_deployed(config).compile_s > 0
