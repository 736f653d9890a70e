"""What preparation does to the graph leaves the user's weighted ops in the tuning space."""

from __future__ import annotations

import numpy as np
from onnx import helper

from distune.backends.onnxruntime.capability import inspect
from distune.backends.onnxruntime.preprocess import prepare
from tests.backends.onnx_models import model


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
