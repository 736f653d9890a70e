"""The QOperator form computes what the QDQ form does, without Q/DQ pairs around quantized ops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.options import OP_KINDS
from distune.config.job import ModelSpec, TuningJob
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from tests.backends.onnx_models import (
    SAMPLES,
    Feeds,
    attention_model,
    backend_of,
    convolution_model,
    default_config,
    images,
    model,
    sentences,
)
from tests.backends.test_onnx_capability import after_convolution


def qoperator_backend(proto: onnx.ModelProto, feeds: Feeds) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto, quant_format="QOperator")))
    backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate(feeds)))
    return backend


PAIRED = {"Clip"}
"""Ops without an integer operator."""


@pytest.mark.parametrize("op_type", sorted(OP_KINDS))
def test_each_row_of_the_table_computes_the_same_in_both_forms(op_type: str) -> None:
    proto = after_convolution(op_type)
    backend, pairs = qoperator_backend(proto, images()), backend_of(proto, images())
    config = default_config(backend)
    loaded = backend.load(config)
    feed = images()[0]
    np.testing.assert_array_equal(loaded.predict(feed)[0], pairs.load(config).predict(feed)[0])
    types = [node.op_type for node in loaded.native.graph.node]
    assert "QLinearConv" in types
    if op_type not in PAIRED:
        assert types.count("QuantizeLinear") == 1, types
    assert loaded.ops_executed_int8 == pairs.load(config).ops_executed_int8


def test_a_network_has_one_quantize_and_one_dequantize_at_its_ends() -> None:
    loaded = qoperator_backend(convolution_model(), images()).load(
        default_config(backend_of(convolution_model(), images()))
    )
    types = [node.op_type for node in loaded.native.graph.node]
    assert types.count("QuantizeLinear") == types.count("DequantizeLinear") == 1
    assert types.count("QLinearConv") == 3
    assert types.count("QGemm") == 1


def test_what_falls_back_stands_in_floating_point_between_integer_operators() -> None:
    backend = qoperator_backend(convolution_model(), images())
    config = default_config(backend).with_ops({"conv2": FP32, "relu2": FP32})
    types = [node.op_type for node in backend.load(config).native.graph.node]
    assert types.count("Conv") == 1
    assert types.count("QLinearConv") == 2
    assert types.count("QuantizeLinear") == types.count("DequantizeLinear") == 2


def test_a_transformer_in_both_forms() -> None:
    backend, pairs = qoperator_backend(attention_model(), sentences()), backend_of(attention_model(), sentences())
    config = default_config(backend)
    feed = sentences()[0]
    ours, theirs = backend.load(config).predict(feed)[0], pairs.load(config).predict(feed)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    types = [node.op_type for node in backend.load(config).native.graph.node]
    assert types.count("QLinearMatMul") == 4
    assert types.count("MatMulIntegerToFloat") == 2  # the scores, and the last one


@pytest.mark.parametrize("make", [backend_of, qoperator_backend])
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 1.0), (1.0, 0.5), (0.25, 2.0)])
def test_a_gemm_keeps_its_factors(make: Callable[..., OnnxRuntimeBackend], alpha: float, beta: float) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(16, 8)), "b": rng.normal(size=8) * 8}
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", alpha=alpha, beta=beta)
    arrays = {name: array.astype(np.float32) for name, array in constants.items()}
    feed = {"x": rng.normal(size=(8, 16)).astype(np.float32)}
    backend = make(model([gemm], {"x": ["batch", 16]}, ["y"], arrays), [feed])
    loaded = backend.load(default_config(backend))
    assert loaded.ops_executed_int8 == 1
    expected = backend.load(None).predict(feed)[0]
    np.testing.assert_allclose(loaded.predict(feed)[0], expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("make", [backend_of, qoperator_backend])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_gemm_that_adds_a_computed_tensor_has_no_integer_kernel(
    make: Callable[..., OnnxRuntimeBackend], beta: float
) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(16, 16)).astype(np.float32) / 4 for name in ("w0", "w1", "w2")}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["side"], "side"),
        helper.make_node("MatMul", ["side", "w1"], ["h"], "inner"),
        helper.make_node("Gemm", ["h", "w2", "side"], ["y"], "joining", beta=beta),
    ]
    feed = {"x": rng.normal(size=(8, 16)).astype(np.float32)}
    backend = make(model(nodes, {"x": ["batch", 16]}, ["y"], arrays), [feed])
    assert ("joining", "Gemm", "its bias is not constant") in backend.facts().capability.excluded
    expected, actual = (backend.load(c).predict(feed)[0] for c in (None, default_config(backend)))
    np.testing.assert_allclose(actual, expected, atol=0.03 * np.abs(expected).max())


def test_what_is_exported_is_what_was_judged() -> None:
    backend = qoperator_backend(convolution_model(), images())
    config = default_config(backend)
    exported = backend.export(config)
    assert exported.files["model.onnx"] == backend.load(config).native.SerializeToString(deterministic=True)
    assert backend.apply(exported.deploy, config).files == exported.files


@pytest.mark.parametrize("make", [backend_of, qoperator_backend])
@pytest.mark.parametrize("mode", ["static", "dynamic", "fp32"])
def test_constants_stay_outputs_of_the_graph(make: Callable[..., OnnxRuntimeBackend], mode: str) -> None:
    proto = convolution_model()
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(4, dtype=np.float32), "anchors"))
    for name in ("anchors", "wf"):
        proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    backend = make(proto, images())
    config = default_config(backend)
    ops = {op.name: [o for o in op.options if o.mode == mode] for op in backend.facts().capability.ops}
    config = config.with_ops({name: options[0] for name, options in ops.items() if options})
    assert backend.facts().outputs == ("y", "anchors", "wf")
    expected, actual = (backend.load(c).predict(images()[0]) for c in (None, config))
    np.testing.assert_array_equal(actual[1], expected[1])
    np.testing.assert_array_equal(actual[2], expected[2])
    exported = backend.export(config)
    assert backend.apply(exported.deploy, config).files == exported.files


def test_a_constant_before_an_activation_in_both_forms() -> None:
    """Weights are int8 and activations uint8; no integer operator multiplies them in this order."""
    rng = np.random.default_rng(0)
    constants = {"table": rng.normal(size=(50, 16)), "w": rng.normal(size=(8, 6)), "v": rng.normal(size=(2, 8))}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embedding"),
        helper.make_node("MatMul", ["w", "e"], ["h"], "first"),
        helper.make_node("MatMul", ["v", "h"], ["y"], "second"),
    ]
    proto = model(
        nodes,
        {"ids": [6]},
        ["y"],
        {name: value.astype(np.float32) for name, value in constants.items()},
        input_type=onnx.TensorProto.INT64,
    )
    feed = {"ids": np.arange(6)}
    backend, pairs = qoperator_backend(proto, [feed]), backend_of(proto, [feed])
    config = default_config(backend)
    assert config.quantized_ops
    np.testing.assert_allclose(
        backend.load(config).predict(feed)[0], pairs.load(config).predict(feed)[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("op_type", ["Conv", "Gemm", "MatMul"])
def test_a_signed_activation_of_one_op_before_an_unsigned_weight_of_another(op_type: str) -> None:
    """They read one tensor, and the first decides its type: no integer operator takes both."""
    rng = np.random.default_rng(0)
    size = (4, 3, 1, 1) if op_type == "Conv" else (3, 4)
    constants = {name: rng.normal(size=size).astype(np.float32) for name in ("w1", "w2")}
    nodes = [helper.make_node(op_type, ["x", f"w{i}"], [f"y{i}"], f"op{i}") for i in (1, 2)]
    proto = model(nodes, {"x": [2, 3, 5, 5] if op_type == "Conv" else [2, 3]}, ["y1", "y2"], constants)
    feed = {"x": rng.normal(size=[2, 3, 5, 5] if op_type == "Conv" else [2, 3]).astype(np.float32)}
    backend, pairs = qoperator_backend(proto, [feed]), backend_of(proto, [feed])
    signed = OpConfig("static", TensorConfig("int8", "asym"), TensorConfig("int8", "sym"))
    unsigned = OpConfig("static", TensorConfig("uint8", "asym"), TensorConfig("uint8", "asym"))
    config = TuningConfig((("op1", signed), ("op2", unsigned)), sampling_size=SAMPLES)
    for ours, theirs in zip(backend.load(config).predict(feed), pairs.load(config).predict(feed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op_type", sorted(OP_KINDS))
@pytest.mark.parametrize("dtypes", [("int8", "uint8"), ("uint8", "int8")])
def test_each_row_of_the_table_behind_an_op_of_another_type(op_type: str, dtypes: tuple[str, str]) -> None:
    proto = after_convolution(op_type)
    backend, pairs = qoperator_backend(proto, images()), backend_of(proto, images())
    config = default_config(backend)
    changes = {
        name: OpConfig("static", TensorConfig(dtypes[name != "conv"], "asym"), option.weight)
        for name, option in config.ops
    }
    ours, theirs = (each.load(config.with_ops(changes)).predict(images()[0])[0] for each in (backend, pairs))
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max(), "one step of int8, where a mean is rounded"


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Concat"])
@pytest.mark.parametrize("dtypes", [("int8", "uint8"), ("uint8", "int8")])
def test_two_inputs_of_different_types(op_type: str, dtypes: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    sizes = {"wa": (8, 3, 1, 1), "wb": (8, 3, 1, 1), "wc": (4, 8, 1, 1)}
    attributes = {"axis": 1} if op_type == "Concat" else {}
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], "first"),
        helper.make_node("Conv", ["a", "wc"], ["other"], "reader"),  # decides the type of a
        helper.make_node("Conv", ["x", "wb"], ["b"], "second"),
        helper.make_node(op_type, ["a", "b"], ["y"], "op", **attributes),
    ]
    constants = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    proto = model(nodes, {"x": ["batch", 3, 12, 12]}, ["y", "other"], constants)
    backend, pairs = qoperator_backend(proto, images()), backend_of(proto, images())
    config = default_config(backend)
    changes = {
        name: OpConfig("static", TensorConfig(dtypes[name != "reader"], "asym"), option.weight)
        for name, option in config.ops
    }
    for ours, theirs in zip(
        *(b.load(config.with_ops(changes)).predict(images()[0]) for b in (backend, pairs)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_resizing_with_antialiasing_keeps_signed_values() -> None:
    """ONNX Runtime's kernel clips int8 to the range of uint8 there."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32) / 5
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Resize", ["c", "", "scales"], ["y"], "resize", mode="linear", antialias=1),
    ]
    constants = {"w": weight, "scales": np.array([1, 1, 0.5, 0.5], np.float32)}
    proto = model(nodes, {"x": ["batch", 3, 12, 12]}, ["y"], constants, opset=18)
    backend = qoperator_backend(proto, images())
    config = default_config(backend)
    signed = TensorConfig("int8", "sym")
    changes = {name: OpConfig("static", signed, option.weight) for name, option in config.ops}
    expected = backend.load(None).predict(images()[0])[0]
    actual = backend.load(config.with_ops(changes)).predict(images()[0])[0]
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
