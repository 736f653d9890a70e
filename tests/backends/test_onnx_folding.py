"""Factors on the input of a layer disappear into the LayerNormalization before it, where nothing else reads that."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from distune.backends.onnxruntime.folding import fold_into_normalization
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
