"""Dynamic quantization: every row of its table runs on integers, and static and dynamic ops live in one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.options import DYNAMIC_OPTIONS
from distune.config.job import ModelSpec, TuningJob
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import build_space
from distune.strategies.op_type_wise import op_type_wise
from tests.backends.onnx_models import SAMPLES, attention_model, backend_of, convolution_model, images, model, sentences

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    """Values of a standard normal distribution, float32."""
    return RNG.normal(size=shape).astype(np.float32)


IDS = RNG.integers(0, 20, size=(2, 5))
SINGLE: Mapping[str, tuple[dict[str, Any], dict[str, np.ndarray], Sequence[np.ndarray | None]]] = {
    "MatMul": ({}, {"x": normal(4, 16)}, [normal(16, 8)]),
    "Gemm": ({"transB": 1, "alpha": 0.5, "beta": 2.0}, {"x": normal(4, 16)}, [normal(8, 16), normal(8)]),
    "Conv": ({"pads": [1, 1, 1, 1]}, {"x": normal(2, 3, 8, 8)}, [normal(4, 3, 3, 3), normal(4)]),
    "Gather": ({}, {"x": IDS}, [normal(20, 16)]),
    "LSTM": ({"hidden_size": 8}, {"x": normal(5, 2, 16)}, [normal(1, 32, 16) / 4, normal(1, 32, 8) / 4, normal(1, 64)]),
    "Attention": ({"num_heads": 2}, {"x": normal(2, 5, 16)}, [normal(16, 48) / 4, normal(48)]),
    "EmbedLayerNormalization": (
        {},
        {"x": IDS.astype(np.int32), "segments": np.zeros_like(IDS, dtype=np.int32)},
        [normal(20, 16), normal(8, 16), normal(2, 16), normal(16), normal(16)],
    ),
}
"""Attributes, feed and constants of a one-op model of each type of the table."""

MICROSOFT = {"Attention", "EmbedLayerNormalization"}


def single(op_type: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    attributes, feed, constants = SINGLE[op_type]
    names = [f"c{position}" for position in range(len(constants))]
    inputs = ["c0", "x"] if op_type == "Gather" else [*feed, *names]
    outputs = ["y", "mask"] if op_type == "EmbedLayerNormalization" else ["y"]
    domain = "com.microsoft" if op_type in MICROSOFT else ""
    node = helper.make_node(op_type, inputs, outputs, "op", domain=domain, **attributes)
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "test",
        [
            helper.make_tensor_value_info(name, types.get(value.dtype, TensorProto.INT32), value.shape)
            for name, value in feed.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names, constants, strict=True)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), feed


ROWS = [(op_type, option) for op_type, options in DYNAMIC_OPTIONS.items() for option in options]


@pytest.mark.parametrize(
    ("op_type", "option"),
    ROWS,
    ids=[f"{kind}-{o.weight.dtype}-{o.weight.scheme}-{o.weight.granularity}" for kind, o in ROWS if o.weight],
)
def test_each_row_of_the_table_runs_on_integers_and_stays_close_to_fp32(op_type: str, option: OpConfig) -> None:
    proto, feed = single(op_type)
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto)))
    (op,) = backend.facts().capability.ops
    assert option in op.options
    loaded = backend.load(TuningConfig(((op.name, option),)))
    expected, actual = backend.load(None).predict(feed)[0], loaded.predict(feed)[0]
    assert np.square(expected - actual).mean() < 2e-3 * np.square(expected).mean()
    assert not np.array_equal(expected, actual)
    assert (loaded.ops_executed_int8, dict(loaded.reasons)) == (1, {})


@pytest.mark.parametrize("option", DYNAMIC_OPTIONS["MatMul"], ids=lambda o: f"{o.weight.scheme}-{o.weight.granularity}")
@pytest.mark.parametrize("shape", [(16,), (3, 16, 8)], ids=["vector", "stack"])
def test_a_product_by_a_weight_that_is_no_matrix(option: OpConfig, shape: tuple[int, ...]) -> None:
    weight = normal(*shape) * np.linspace(0.01, 3, shape[-1], dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "op")
    backend = OnnxRuntimeBackend(
        TuningJob(ModelSpec("onnxruntime", live=model([node], {"x": [3, 5, 16]}, ["y"], {"w": weight})))
    )
    feed = {"x": normal(3, 5, 16)}
    expected = backend.load(None).predict(feed)[0]
    actual = backend.load(TuningConfig((("op", option),))).predict(feed)[0]
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())


def test_the_products_are_those_of_onnx_runtimes_own_dynamic_quantizer(tmp_path: Path) -> None:
    proto = attention_model()
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(proto, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto)))
    ops = backend.facts().capability.ops
    wanted = DYNAMIC_OPTIONS["MatMul"][0]
    ours = backend.load(TuningConfig(tuple((op.name, wanted if wanted in op.options else FP32) for op in ops)))
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    mine = {t.name: numpy_helper.to_array(t) for t in ours.native.graph.initializer}
    for name in ("wq", "wk", "wv", "wo"):
        np.testing.assert_array_equal(mine[f"{name}_quantized"], stored[f"{name}_quantized"])
        np.testing.assert_array_equal(mine[f"{name}_scale"], stored[f"{name}_scale"])


def test_static_and_dynamic_ops_live_in_one_graph() -> None:
    backend = backend_of(convolution_model(), images())
    ops = {op.name: op for op in backend.facts().capability.ops}
    dynamic = next(option for option in ops["fc"].options if option.mode == "dynamic")
    config = TuningConfig(tuple((name, op.options[0]) for name, op in ops.items()), sampling_size=SAMPLES)
    config = config.with_ops({"fc": dynamic})
    loaded = backend.load(config)
    expected, actual = backend.load(None).predict(images()[0])[0], loaded.predict(images()[0])[0]
    assert np.square(expected - actual).mean() < 2e-3 * np.square(expected).mean()
    types = [node.op_type for node in loaded.native.graph.node]
    assert types.count("MatMulInteger") == 1
    assert types.count("QuantizeLinear") > 1
    assert loaded.ops_executed_int8 == 4


def test_an_approach_of_dynamic_alone_needs_no_calibration_and_splits_no_group() -> None:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=attention_model())))
    space = build_space(backend.facts().capability, (), "dynamic", {}, (SAMPLES,))
    assert space.warnings == ()
    assert not space.default().needs_calibration
    assert "output_bias" not in space.op
    loaded = backend.load(space.default())
    assert loaded.ops_executed_int8 == 5
    loaded.predict(sentences()[0])


def test_with_approach_auto_a_group_turns_dynamic_as_a_whole() -> None:
    """What follows a product (its bias) has no dynamic form: left static, it would quantize for nothing."""
    backend = backend_of(attention_model(), sentences())
    space = build_space(backend.facts().capability, (), "auto", {}, (SAMPLES,))
    base = space.default()
    assert {option.mode for _, option in base.ops} == {"static"}
    turned = next(op_type_wise(space, base, "dynamic")).config
    assert turned.by_name["output"].mode == "dynamic"
    assert turned.by_name["output_bias"] == FP32
    assert turned.by_name["scores"].mode == "static"
    backend.load(turned).predict(sentences()[0])


def test_export_and_apply_agree_where_nothing_is_calibrated() -> None:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=attention_model())))
    config = build_space(backend.facts().capability, (), "dynamic", {}, (SAMPLES,)).default()
    exported = backend.export(config)
    assert backend.apply(exported.deploy, config).files == exported.files


def test_the_constants_that_were_quantized_are_gone() -> None:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=attention_model())))
    config = build_space(backend.facts().capability, (), "dynamic", {}, (SAMPLES,)).default()
    names = {tensor.name for tensor in backend.load(config).native.graph.initializer}
    assert not names & {"wq", "wk", "wv", "wo", "table"}


def test_symmetric_products_have_no_zero_point_for_their_weight_and_asymmetric_ones_do() -> None:
    """ONNX Runtime takes a vector of zero points, even of zeros, by a slower kernel."""
    proto, _ = single("MatMul")
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto)))
    for option in DYNAMIC_OPTIONS["MatMul"]:
        assert option.weight is not None
        nodes = backend.load(TuningConfig((("op", option),))).native.graph.node
        inputs = next(node.input for node in nodes if node.op_type == "MatMulInteger")
        assert len(inputs) == (3 if option.weight.scheme == "sym" else 4)


def test_a_quantized_graph_brings_no_inferred_shapes() -> None:
    """With them ONNX Runtime fuses Add and LayerNormalization to an op that is slower than the two."""
    backend = backend_of(attention_model(), sentences())
    ops = backend.facts().capability.ops
    config = TuningConfig(tuple((op.name, op.options[0]) for op in ops), sampling_size=SAMPLES)
    assert not backend.load(config).native.graph.value_info
