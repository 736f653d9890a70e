"""Groups: what falls back together, and that no Q/DQ pair stays inside or around what fell back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from onnx import helper

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.space.op_config import FP32, TuningConfig
from tests.backends.onnx_models import Feeds, backend_of, default_config, images, model


def residual_model(join: str) -> onnx.ModelProto:
    """stem, relu0, then conv_a, relu_a, conv_b in a branch that ``join`` (Add or Concat) joins; relu, pool, head."""
    rng = np.random.default_rng(0)
    width = 8 if join == "Add" else 16
    shapes = {"w0": (8, 3, 3, 3), "wa": (8, 8, 3, 3), "wb": (8, 8, 3, 3), "wh": (4, width, 1, 1)}
    constants = {name: (rng.normal(size=shape) / 6).astype(np.float32) for name, shape in shapes.items()}
    attributes = {"axis": 1} if join == "Concat" else {}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "wa"], ["ca"], "conv_a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["ca"], ["ra"], "relu_a"),
        helper.make_node("Conv", ["ra", "wb"], ["cb"], "conv_b", pads=[1, 1, 1, 1]),
        helper.make_node(join, ["cb", "r0"], ["j"], "join", **attributes),
        helper.make_node("Relu", ["j"], ["rj"], "relu_j"),
        helper.make_node("MaxPool", ["rj"], ["p"], "max_pool", kernel_shape=[2, 2]),
        helper.make_node("AveragePool", ["p"], ["q"], "average_pool", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["q", "wh"], ["y"], "head"),
    ]
    return model(nodes, {"x": ["batch", 3, 12, 12]}, ["y"], constants)


def feeds() -> Feeds:
    return images()


def fallen_back(backend: OnnxRuntimeBackend, groups: Iterable[str]) -> TuningConfig:
    ops = backend.facts().capability.ops
    return default_config(backend).with_ops({op.name: FP32 for op in ops if op.group in set(groups)})


@pytest.mark.parametrize("join", ["Add", "Concat"])
def test_what_joins_branches_and_pools_goes_with_the_convolution_before_it(join: str) -> None:
    backend = backend_of(residual_model(join), feeds())
    groups = {op.name: op.group for op in backend.facts().capability.ops}
    expected = {"stem": "stem", "relu0": "stem", "conv_a": "conv_a", "relu_a": "conv_a", "head": "head"}
    last = dict.fromkeys(("conv_b", "join", "relu_j", "max_pool", "average_pool"), "conv_b")
    assert groups == {**expected, **last}


@pytest.mark.parametrize("join", ["Add", "Concat"])
@pytest.mark.parametrize("group", ["conv_a", "conv_b", "stem", "head"])
def test_no_pair_stays_inside_a_group_that_fell_back(join: str, group: str) -> None:
    backend = backend_of(residual_model(join), feeds())
    members = {op.name for op in backend.facts().capability.ops if op.group == group}
    loaded = backend.load(fallen_back(backend, [group]))
    made_by = {name: node for node in loaded.native.graph.node for name in node.output}
    for node in loaded.native.graph.node:
        if node.name not in members:
            continue
        for source in (made_by[name] for name in node.input if name in made_by):
            if source.op_type == "DequantizeLinear" and source.input[0] in made_by:
                quantize = made_by[source.input[0]]
                origin = made_by.get(quantize.input[0])
                assert origin is None or origin.name not in members, (node.name, quantize.name)
    assert loaded.ops_executed_int8 == 3
    assert dict(loaded.reasons) == {}


def test_neighbours_that_fell_back_have_no_pair_between_them() -> None:
    backend = backend_of(residual_model("Add"), feeds())
    pairs = {
        groups: [n.op_type for n in backend.load(fallen_back(backend, groups)).native.graph.node].count(
            "QuantizeLinear"
        )
        for groups in ((), ("conv_a",), ("conv_a", "conv_b"), ("stem", "conv_a", "conv_b", "head"))
    }
    assert list(pairs.values()) == sorted(pairs.values(), reverse=True)
    assert pairs["stem", "conv_a", "conv_b", "head"] == 0
