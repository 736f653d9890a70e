"""What preparation does to the graph leaves the user's weighted ops in the tuning space."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distune.backends.onnxruntime.capability import inspect
from distune.backends.onnxruntime.preprocess import prepare
from distune.space.op_config import FP32
from tests.backends.onnx_models import backend_of, default_config, model
from tests.backends.test_onnx_qoperator import qoperator_backend


def test_a_residual_addition_does_not_hide_the_weight_before_it() -> None:
    # ONNX Runtime joins a MatMul and the addition of a computed tensor into a Gemm, which then has no integer kernel.
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(8, 8)).astype(np.float32) for i in range(2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], "second"),
        helper.make_node("Add", ["b", "a"], ["y"], "residual"),
    ]
    capability = inspect(prepare(model(nodes, {"x": ["batch", 8]}, ["y"], weights)))
    assert [op.name for op in capability.ops if op.has_weight] == ["first", "second"]
    assert not capability.excluded


@pytest.mark.parametrize(
    ("shape", "beta"),
    [((), 1.0), ((1,), 1.0), ((8,), 1.0), ((1, 1), 1.0), ((1, 8), 1.0), ((4, 1), 1.0), ((4, 8), 1.0), ((4, 8), 0.5)],
)
def test_a_gemm_runs_on_integers_with_a_bias_of_any_legal_shape(shape: tuple[int, ...], beta: float) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(8, 16)).astype(np.float32),
        "b": (np.asarray(rng.normal(size=shape)) * 5).astype(np.float32),
    }
    proto = model(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], "fc", transB=1, beta=beta),
            helper.make_node("Relu", ["h"], ["y"], "relu"),
        ],
        {"x": [4, 16]},
        ["y"],
        constants,
    )
    feed = {"x": rng.normal(size=(4, 16)).astype(np.float32)}
    for make in (backend_of, qoperator_backend):
        backend = make(proto, [feed])
        loaded = backend.load(default_config(backend))
        expected = backend.load(None).predict(feed)[0]
        assert np.abs(loaded.predict(feed)[0] - expected).max() < 0.03 * np.abs(expected).max()
        assert loaded.ops_executed_int8 >= 1


@pytest.mark.parametrize("shape", [(1, 8), (4, 1), (4, 8)])
def test_a_matmul_and_the_addition_of_a_matrix_are_both_quantized(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(16, 8)), "b": rng.normal(size=shape)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Add", ["h", "b"], ["y"], "sum"),
    ]
    proto = model(nodes, {"x": [4, 16]}, ["y"], {name: value.astype(np.float32) for name, value in constants.items()})
    feed = {"x": rng.normal(size=(4, 16)).astype(np.float32)}
    backend = backend_of(proto, [feed])
    assert {op.name for op in backend.facts().capability.ops} <= {"product", "sum"}
    expected = backend.load(None).predict(feed)[0]
    actual = backend.load(default_config(backend)).predict(feed)[0]
    assert np.abs(actual - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("value", [None, 0.0, 1.5])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_padding_of_chosen_axes_is_padding_of_all(axes: list[int], value: float | None) -> None:
    """Pad has axes since opset 18; ONNX Runtime permutes such counts as if there were one for every axis."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)).astype(np.float32) / 4,
        "w2": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 8,
        "counts": np.array([1, 2, 1, 0]),
        "axes": np.array(axes),
    }
    if value is not None:
        constants["value"] = np.array(value, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("Pad", ["c1", "counts", "" if value is None else "value", "axes"], ["p"], "pad"),
        helper.make_node("Conv", ["p", "w2"], ["y"], "conv2"),
    ]
    feed = {"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)}
    backend = backend_of(model(nodes, {"x": ["batch", 3, 8, 8]}, ["y"], constants, opset=18), [feed])
    expected, actual = (backend.load(c).predict(feed)[0] for c in (None, default_config(backend)))
    assert np.abs(actual - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("linear", [True, False])
def test_a_sparse_weight_is_a_weight(linear: bool) -> None:
    rng = np.random.default_rng(0)
    places = np.array([[3, 4], [5, 0], [10, 2]])
    values = rng.normal(size=3).astype(np.float32)
    indices = places @ [8, 1] if linear else places
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "last"),
    ]
    proto = model(nodes, {"x": ["batch", 16]}, ["y"], {"v": rng.normal(size=(8, 4)).astype(np.float32)})
    weight = helper.make_sparse_tensor(
        numpy_helper.from_array(values, "w"), numpy_helper.from_array(indices, "w_indices"), [16, 8]
    )
    proto.graph.sparse_initializer.append(weight)
    feed = {"x": rng.normal(size=(4, 16)).astype(np.float32)}
    backend = backend_of(proto, [feed])
    assert [op.name for op in backend.facts().capability.ops if op.has_weight] == ["product", "last"]
    expected, actual = (backend.load(c).predict(feed)[0] for c in (None, default_config(backend)))
    assert np.abs(actual - expected).max() < 0.03 * np.abs(expected).max()


SAID_IN_PART = {
    "scales": ({"axes": [2, 3]}, ["", "amounts"], np.array([2, 1.5], np.float32), ["p"]),
    "scales from behind": ({"axes": [-1, -2]}, ["", "amounts"], np.array([2, 1.5], np.float32), ["p"]),
    "sizes": ({"axes": [3, 2]}, ["", "", "amounts"], np.array([12, 14]), ["p"]),
}
"""Attributes of a Resize, its further inputs, and the constant that is one of them."""


@pytest.mark.parametrize("case", SAID_IN_PART)
def test_resizing_chosen_axes_is_resizing_all(case: str) -> None:
    attributes, inputs, amounts, outputs = SAID_IN_PART[case]
    resize = helper.make_node("Resize", ["c1", *inputs], outputs, "between", mode="nearest", **attributes)
    _run_between_convolutions(resize, amounts)


def test_an_omitted_output_is_left_out() -> None:
    pool = helper.make_node("MaxPool", ["c1"], ["p", ""], "between", kernel_shape=[2, 2])
    _run_between_convolutions(pool, np.zeros(0, np.float32))


def _run_between_convolutions(node: onnx.NodeProto, amounts: np.ndarray) -> None:
    """ONNX Runtime moves transpositions through ``node`` (of ``c1`` and ``amounts`` to ``p``), which may fail."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)).astype(np.float32) / 4,
        "w2": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 8,
        "amounts": amounts,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1] * 4),
        node,
        helper.make_node("Conv", ["p", "w2"], ["y"], "conv2"),
    ]
    feed = {"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)}
    backend = backend_of(model(nodes, {"x": [4, 3, 8, 8]}, ["y"], constants, opset=18), [feed])
    config = default_config(backend)
    expected = backend.load(None).predict(feed)[0]
    for changed in (config, config.with_ops({"between": FP32})):
        actual = backend.load(changed).predict(feed)[0]
        assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
