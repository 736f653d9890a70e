"""A model in fp16 is quantized as its fp32 form is, and keeps its inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from distune.backends.onnxruntime.widening import widened
from distune.space.op_config import FP32
from tests.backends.onnx_models import (
    Feeds,
    attention_model,
    backend_of,
    convolution_model,
    default_config,
    images,
    model,
    sentences,
)


def in_half(proto: onnx.ModelProto, keep_io_types: bool = False) -> onnx.ModelProto:
    half: onnx.ModelProto = convert_float_to_float16(
        onnx.shape_inference.infer_shapes(proto), keep_io_types=keep_io_types
    )
    return half


def _narrowed(feeds: Feeds) -> Feeds:
    return [{n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in feed.items()} for feed in feeds]


CASES = [
    (in_half(convolution_model()), _narrowed(images())),
    (in_half(convolution_model(), keep_io_types=True), images()),
    (in_half(attention_model(-1e4)), sentences()),
]


@pytest.mark.parametrize(("proto", "feeds"), CASES, ids=["convolution", "convolution, fp32 outside", "attention"])
def test_its_ops_are_those_of_the_model_in_fp32(proto: onnx.ModelProto, feeds: Feeds) -> None:
    plain = attention_model(-1e4) if "ids" in feeds[0] else convolution_model()
    theirs = backend_of(plain, sentences() if "ids" in feeds[0] else images()).facts().capability
    backend = backend_of(proto, feeds)
    ours = backend.facts().capability
    assert [(op.name, op.options) for op in ours.ops] == [(op.name, op.options) for op in theirs.ops]
    expected = backend.load(None).predict(feeds[0])[0]
    config = default_config(backend)
    for changed in (
        config,
        config.with_ops({ours.ops[0].name: FP32}),
        config.with_ops(dict.fromkeys(dict(config.ops), FP32)),
    ):
        loaded = backend.load(changed)
        actual = loaded.predict(feeds[0])[0]
        assert actual.dtype == expected.dtype
        assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
    assert backend.load(config).ops_executed_int8 > 1


def test_a_model_without_fp16_stays_as_it_is() -> None:
    proto = convolution_model()
    assert widened(proto) is proto


def test_fp16_inside_branches_constants_and_casts_is_widened_too() -> None:
    def branch(name: str, tensor: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT16, None)
        constant = helper.make_tensor(f"{name}_two", TensorProto.FLOAT16, [], [2.0])
        nodes = [
            helper.make_node("Constant", [], [f"{name}_c"], value=constant),
            helper.make_node("Mul", [tensor, f"{name}_c"], [output.name]),
        ]
        return helper.make_graph(nodes, name, [], [output])

    nodes = [
        helper.make_node("Cast", ["count"], ["c"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Greater", ["c", "one"], ["more"], "more"),
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("If", ["more"], ["b"], "branch", then_branch=branch("t", "x"), else_branch=branch("e", "h")),
        helper.make_node("Add", ["b", "h"], ["y"], "sum"),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
    ]
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(8, 8)).astype(np.float16), "one": np.ones((), np.float16)}
    proto = model(nodes, {"x": ["batch", 8]}, ["y", "z"], constants, input_type=TensorProto.FLOAT16)
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT16
    proto.graph.input.append(helper.make_tensor_value_info("count", TensorProto.INT64, []))
    feeds = [{"x": rng.normal(size=(4, 8)).astype(np.float16), "count": np.array(count)} for count in (0, 3)]
    backend = backend_of(proto, feeds)
    assert "product" in {op.name for op in backend.facts().capability.ops}
    loaded = backend.load(default_config(backend))
    for feed in feeds:
        for expected, actual in zip(backend.load(None).predict(feed), loaded.predict(feed), strict=True):
            assert actual.dtype == np.float16
            assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
