"""Tensors of fp32 and of the quantized model side by side, against numpy by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distune.backends.diagnosis import BINS, TensorComparison
from tests.backends.onnx_models import OnnxRuntimeBackend, backend_of, convolution_model, default_config, images


def compared(*batches: tuple[np.ndarray, np.ndarray]) -> dict[str, object]:
    comparison = TensorComparison()
    for step in (comparison.see_range, comparison.count):
        for expected, actual in batches:
            step(expected, actual)
    return comparison.result()


def test_figures_are_those_of_all_batches_together() -> None:
    rng = np.random.default_rng(0)
    fp32 = rng.normal(size=(4, 100)).astype(np.float32)
    rounded = np.round(fp32 * 8) / 8
    result = compared(*((fp32[index], rounded[index]) for index in range(4)))
    error = np.square(fp32.astype(np.float64) - rounded).mean()
    assert result["mse"] == pytest.approx(error)
    assert result["sqnr_db"] == pytest.approx(10 * math.log10(np.square(fp32.astype(np.float64)).mean() / error))
    assert result["fp32_range"] == [fp32.min(), fp32.max()]
    counts, edges = result["counts"], result["edges"]
    assert isinstance(counts, list)
    assert isinstance(edges, list)
    assert (sum(counts), len(edges)) == (400, BINS + 1)


def test_saturation_is_the_share_beyond_the_quantized_range() -> None:
    fp32 = np.linspace(-2, 2, 401, dtype=np.float32)
    result = compared((fp32, np.clip(fp32, -1, 1)))
    assert result["saturation"] == pytest.approx(200 / 401, abs=0.01)


def test_masks_are_no_signal() -> None:
    fp32 = np.array([1.0, -3.4e38, -np.inf, 2.0], np.float32)
    assert compared((fp32, np.array([1.0, 0.0, 0.0, 2.0], np.float32)))["fp32_range"] == [1.0, 2.0]


def test_equal_tensors_have_no_ratio() -> None:
    same = np.ones(8, np.float32)
    result = compared((same, same))
    assert (result["mse"], result["sqnr_db"]) == (0.0, None)


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return backend_of(convolution_model(), images())


def test_a_backend_compares_outputs_and_weights(backend: OnnxRuntimeBackend) -> None:
    config = default_config(backend)
    name = next(op.name for op in backend.facts().capability.ops if op.op_type == "Conv" and op.has_weight)
    found = backend.diagnose(config, [name], images()[:1], "all")[name]
    assert 0 < found["weight"]["mse"] < 1e-4
    assert found["weight"]["sqnr_db"] > 30
    assert found["activation"]["sqnr_db"] > 15
    assert sum(found["activation"]["counts"]) == sum(found["activation"]["quantized_counts"])


def test_only_what_is_asked_for_is_compared(backend: OnnxRuntimeBackend) -> None:
    name = next(op.name for op in backend.facts().capability.ops if op.op_type == "Conv")
    assert set(backend.diagnose(default_config(backend), [name], images()[:1], "weight")[name]) == {"weight"}
    assert set(backend.diagnose(default_config(backend), [name], images()[:1], "activation")[name]) == {"activation"}
