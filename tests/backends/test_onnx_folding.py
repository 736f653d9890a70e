"""Factors disappear into constants: of a LayerNormalization, where nothing else reads what it gives, and of a Gemm."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from distune.backends.onnxruntime.folding import fold_gemm_factors, fold_into_normalization
from distune.backends.onnxruntime.session import create_session
from tests.backends.onnx_models import model


def normalized(with_bias: bool = True, residual: bool = False) -> onnx.ModelProto:
    """LayerNormalization, a factor of each channel, MatMul; ``residual``: the normalized tensor is read again."""
    rng = np.random.default_rng(0)
    shapes = {"gamma": (8,), "beta": (8,), "factor": (8,), "w": (8, 8)}
    constants = {name: rng.uniform(0.5, 2.0, shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = ["x", "gamma", "beta"] if with_bias else ["x", "gamma"]
    nodes = [
        helper.make_node("LayerNormalization", inputs, ["n"], "norm"),
        helper.make_node("Mul", ["n", "factor"], ["s"], "scale"),
        helper.make_node("MatMul", ["s", "w"], ["m"], "matmul"),
        helper.make_node("Add", ["m", "n" if residual else "x"], ["y"], "add"),
    ]
    return model(nodes, {"x": ["batch", 8]}, ["y"], constants)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_factor_is_gone_and_the_numbers_are_the_same(with_bias: bool) -> None:
    proto = normalized(with_bias)
    feed = {"x": np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)}
    before = create_session(proto.SerializeToString()).run(None, feed)[0]
    assert fold_into_normalization(proto, ["scale"]) == 1
    assert [node.op_type for node in proto.graph.node] == ["LayerNormalization", "MatMul", "Add"]
    np.testing.assert_allclose(create_session(proto.SerializeToString()).run(None, feed)[0], before, rtol=1e-5)


def test_a_factor_stays_where_the_normalized_tensor_is_read_again() -> None:
    proto = normalized(residual=True)
    assert fold_into_normalization(proto, ["scale"]) == 0
    assert [node.op_type for node in proto.graph.node] == ["LayerNormalization", "Mul", "MatMul", "Add"]


def test_factors_of_a_gemm_leave_alone_what_others_read_and_what_is_computed() -> None:
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("w", "w_scaled")}
    constants["b"] = rng.standard_normal(8).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h1"], "both", alpha=2.0, beta=0.5),
        helper.make_node("Gemm", ["h1", "w", "b"], ["h2"], "plain"),
        helper.make_node("Gemm", ["h2", "w_scaled", "h1"], ["h3"], "computed", alpha=0.5, beta=3.0),
        helper.make_node("Gemm", ["h3", "w"], ["y"], "without_bias", alpha=2.0, beta=7.0),
    ]
    proto = model(nodes, {"x": ["batch", 8]}, ["y"], constants)
    feed = {"x": rng.standard_normal((3, 8)).astype(np.float32)}
    before = create_session(proto.SerializeToString()).run(None, feed)[0]
    fold_gemm_factors(proto)
    np.testing.assert_allclose(create_session(proto.SerializeToString()).run(None, feed)[0], before, rtol=1e-4)
    left = {(node.name, item.name) for node in proto.graph.node for item in node.attribute if item.f != 1.0}
    assert left == {("computed", "beta")}
    assert len(proto.graph.initializer) == 5  # w and b as they were and times their factors, w_scaled times its own
