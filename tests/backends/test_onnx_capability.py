"""What is offered for quantization is what ONNX Runtime runs on integers, and what would do harm is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distune.backends.cpu import needs_reduce_range
from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.capability import inspect
from distune.backends.onnxruntime.options import ACTIVATION_OPTIONS, ACTIVATIONS, OP_KINDS
from distune.backends.onnxruntime.preprocess import prepare
from distune.backends.onnxruntime.session import optimized_graph
from distune.config.job import ModelSpec, TuningJob
from distune.space.capability import Capability, OpInfo
from distune.space.op_config import FP32, OpConfig, TuningConfig
from tests.backends.onnx_models import (
    SAMPLES,
    attention_model,
    backend_of,
    convolution_model,
    default_config,
    images,
    model,
    sentences,
)

SINGLE_OPS: dict[str, tuple[dict[str, Any], list[np.ndarray]]] = {
    "Add": ({}, [np.linspace(-1, 1, 12, dtype=np.float32)]),
    "Mul": ({}, [np.linspace(-1, 1, 12, dtype=np.float32)]),
    "Sigmoid": ({}, []),
    "LeakyRelu": ({"alpha": 0.1}, []),
    "AveragePool": ({"kernel_shape": [2, 2]}, []),
    "GlobalAveragePool": ({}, []),
    "Concat": ({"axis": 1}, [np.full((4, 1, 12, 12), 0.3, np.float32)]),
    "Softmax": ({"axis": 1}, []),
    "Relu": ({}, []),
    "Clip": ({}, [np.float32(0), np.float32(1.5)]),
    "MaxPool": ({"kernel_shape": [2, 2]}, []),
    "Split": ({"axis": 1}, []),
    "Pad": ({}, [np.array([0, 0, 1, 1, 0, 0, 1, 1])]),
    "Resize": ({"mode": "nearest"}, [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)]),
    "Reshape": ({}, [np.array([4, -1])]),
    "Transpose": ({"perm": [0, 1, 3, 2]}, []),
    "Squeeze": ({}, [np.array([2])]),
    "Unsqueeze": ({}, [np.array([0])]),
    "Flatten": ({}, []),
    "Slice": ({}, [np.array([0]), np.array([2]), np.array([1])]),
    "ReduceMax": ({"axes": [2, 3]}, []),
    "ReduceMin": ({"axes": [2, 3]}, []),
    "ArgMax": ({"axis": 1}, []),
    "Gather": ({"axis": 1}, [np.array([0, 1])]),
    "Expand": ({}, [np.array([2, 4, 8, 12, 12])]),
    "Tile": ({}, [np.array([1, 1, 2, 1])]),
    "DepthToSpace": ({"blocksize": 2}, []),
    "GatherElements": ({"axis": 1}, [np.zeros((4, 1, 12, 12), np.int64)]),
    "MatMul": ({}, [np.random.default_rng(2).normal(size=(12, 4)).astype(np.float32)]),
    "Gemm": ({}, [np.random.default_rng(2).normal(size=(1152, 4)).astype(np.float32) / 30]),
    "Conv": ({}, [np.random.default_rng(2).normal(size=(4, 8, 1, 1)).astype(np.float32)]),
}
"""Attributes and further inputs of each op type of the table, behind a Conv with 8 channels of 12x12."""


def after_convolution(op_type: str) -> onnx.ModelProto:
    """``x -> Conv -> op -> (Cast) -> y``."""
    attributes, constants = SINGLE_OPS[op_type]
    names = [f"c{position}" for position in range(len(constants))]
    tensor = "c"
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1])]
    if op_type == "Gemm":
        nodes.append(helper.make_node("Flatten", ["c"], ["flat"], "flat"))
        tensor = "flat"
    if op_type == "Squeeze":
        nodes.append(helper.make_node("ReduceMax", ["c"], ["top"], "top", axes=[2]))
        tensor = "top"
    inputs = [tensor, "", *names] if op_type == "Resize" and len(constants) == 1 else [tensor, *names]
    outputs = ["o", "o2"] if op_type == "Split" else ["o"]
    nodes.append(helper.make_node(op_type, inputs, outputs, "op", **attributes))
    if op_type == "ArgMax":
        nodes.append(helper.make_node("Cast", ["o"], ["y"], "cast", to=onnx.TensorProto.FLOAT))
    else:
        nodes.append(helper.make_node("Identity", ["o"], ["y"], "same"))
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32) / 5
    values = {"w": weight, **dict(zip(names, constants, strict=True))}
    return model(nodes, {"x": [4, 3, 12, 12]}, ["y", *outputs[1:]], values)


@pytest.mark.parametrize("op_type", sorted(OP_KINDS))
def test_each_row_of_the_table_runs_and_stays_close_to_fp32(op_type: str) -> None:
    backend = backend_of(after_convolution(op_type), images())
    quantized = backend.load(default_config(backend))
    assert "op" in {op.name for op in backend.facts().capability.ops}
    for feed in images():
        expected, actual = backend.load(None).predict(feed)[0], quantized.predict(feed)[0]
        if op_type == "ArgMax":
            assert np.mean(expected != actual) < 0.1
        else:
            assert np.square(expected - actual).mean() < 2e-3 * np.square(expected).mean()
    executed = optimized_graph(quantized.native.SerializeToString()).graph.node
    floating = {"Conv", "MatMul", "Gemm", op_type} - {"Reshape", "Flatten"}
    made_by = {name: node.op_type for node in executed for name in node.output}
    for node in executed:
        if node.op_type in floating:
            assert all(made_by.get(name) != "DequantizeLinear" for name in node.input), node.name


IN_FLOAT = {("Add", "int8"), ("Mul", "int8"), ("Concat", "int8"), ("Relu", "sym"), ("Clip", "sym")}
"""Options that other ops of a group need and that run in fp32 between their pairs, as the table's docstring says."""

WEIGHTLESS = [kind for kind in sorted(OP_KINDS) if kind not in ("Conv", "MatMul", "Gemm", "Gather")]


@pytest.mark.parametrize("op_type", WEIGHTLESS)
def test_each_type_and_scheme_of_activations_runs_on_integers(op_type: str) -> None:
    """Statistics and graph are made once: the four options differ in range, zero point and kernel only."""
    backend = backend_of(after_convolution(op_type), images())
    feed = images()[0]
    expected = backend.load(None).predict(feed)[0]
    for option in {(o.activation.dtype, o.activation.scheme): o for o in ACTIVATION_OPTIONS if o.activation}.values():
        assert option.activation is not None
        config = default_config(backend)
        changes = {name: OpConfig("static", option.activation, old.weight) for name, old in config.ops}
        loaded = backend.load(config.with_ops(changes))
        actual = loaded.predict(feed)[0]
        if op_type == "ArgMax":
            assert np.mean(expected != actual) < 0.15, option
        else:
            assert np.square(expected - actual).mean() < 8e-3 * np.square(expected).mean(), option
        executed = optimized_graph(loaded.native.SerializeToString()).graph.node
        made_by = {name: node.op_type for node in executed for name in node.output}
        dequantized = [n for n in executed if n.op_type == op_type and made_by.get(n.input[0]) == "DequantizeLinear"]
        fields = {(op_type, option.activation.dtype), (op_type, option.activation.scheme)}
        assert bool(dequantized) == bool(fields & IN_FLOAT), option


CLIPPED = {"kl": 0.1, "percentile": 0.02, "moving_average": 0.02}
"""Share of the power that a range which cuts off the tails may cost on a few hundred values."""


@pytest.mark.parametrize("op_type", sorted(OP_KINDS))
def test_each_way_to_find_a_range_runs(op_type: str) -> None:
    """The algorithm decides about the range alone, so that one type and scheme stands for the others."""
    backend = backend_of(after_convolution(op_type), images())
    feed = images()[0]
    expected = backend.load(None).predict(feed)[0]
    (op,) = (op for op in backend.facts().capability.ops if op.name == "op")
    found = {o.activation.algorithm: o for o in op.options if o.mode == "static" and o.activation is not None}
    assert {"minmax", "kl", "percentile"} <= set(found)
    for algorithm in set(found) - {"minmax"}:
        config = default_config(backend)
        activation = replace(next(o for _, o in config.ops if o.activation).activation, algorithm=algorithm)
        changes = {name: OpConfig("static", activation, old.weight) for name, old in config.ops if old.activation}
        actual = backend.load(config.with_ops(changes)).predict(feed)[0]
        if op_type == "ArgMax":
            assert np.mean(expected != actual) < 0.2, algorithm
        else:
            error = np.square(expected - actual).mean() / np.square(expected).mean()
            assert error < CLIPPED[algorithm], (algorithm, error)


def options_of(capability: Capability, name: str) -> tuple[OpConfig, ...]:
    return next(op.options for op in capability.ops if op.name == name)


@pytest.mark.parametrize("position", range(len(options_of(inspect(prepare(convolution_model())), "conv1")) - 1))
def test_every_option_of_a_weighted_op_executes_on_integers(position: int) -> None:
    backend = backend_of(convolution_model(), images())
    ops = backend.facts().capability.ops
    option = options_of(backend.facts().capability, "conv1")[position]
    config = TuningConfig(
        tuple(
            (op.name, option if option in op.options else OpConfig("static", option.activation, op.options[0].weight))
            for op in ops
        ),
        sampling_size=SAMPLES,
    )
    loaded = backend.load(config)
    feed = images()[0]
    expected, actual = backend.load(None).predict(feed)[0], loaded.predict(feed)[0]
    assert (loaded.ops_executed_int8, dict(loaded.reasons)) == (4, {})
    assert np.square(expected - actual).mean() < 0.02 * np.square(expected).mean()


def test_every_option_of_a_grouped_convolution_is_one_of_a_plain_one() -> None:
    capability = inspect(prepare(convolution_model()))
    left_out = set(options_of(capability, "conv1")) - set(options_of(capability, "conv2"))
    assert set(options_of(capability, "conv2")) < set(options_of(capability, "conv1"))
    assert {(o.weight.scheme, o.weight.granularity) for o in left_out if o.weight} == {("asym", "per_channel")}


def test_default_comes_first_and_fp32_last() -> None:
    for op in inspect(prepare(convolution_model())).ops:
        activation = op.options[0].activation
        assert activation == ACTIVATIONS[0]
        assert op.options[-1] == FP32
        assert len(set(op.options)) == len(op.options)
        if op.has_weight:
            weight = op.options[0].weight
            assert weight is not None
            assert (weight.dtype, weight.scheme, weight.granularity) == ("int8", "sym", "per_channel")


def group_of(ops: tuple[OpInfo, ...]) -> dict[str, str]:
    return {op.name: op.group for op in ops}


def test_groups_hold_what_must_change_together() -> None:
    groups = group_of(inspect(prepare(convolution_model())).ops)
    assert groups["relu1"] == "conv1"
    assert groups["relu2"] == "conv2"
    assert groups["pool"] == groups["flatten"] == "conv3"
    assert groups["fc"] == "fc"
    attention = group_of(inspect(prepare(attention_model())).ops)
    assert attention["output_bias"] == "output"
    assert attention["transpose"] == "key"


def test_members_of_a_group_offer_the_activations_of_their_anchor() -> None:
    for proto in (convolution_model(), attention_model()):
        ops = inspect(prepare(proto)).ops
        offered = {op.name: {option.activation for option in op.options} for op in ops}
        for op in ops:
            assert offered[op.name] == offered[op.group]


def test_masks_attention_probabilities_and_ops_without_kernel_are_left_out_with_the_reason() -> None:
    excluded = {name: reason for name, _, reason in inspect(prepare(attention_model())).excluded}
    assert "mask" in excluded["add_mask"]
    assert "mask" in excluded["scale_mask"]
    assert "attention" in excluded["softmax"]
    assert "no integer kernel for Sub" in excluded["invert"]


@pytest.mark.parametrize(
    "beyond",
    [
        {"mode": "cubic"},
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 30.0},
    ],
    ids=["cubic", "extrapolated"],
)
def test_a_resize_whose_values_leave_the_range_of_its_input_is_left_out(beyond: dict[str, Any]) -> None:
    proto = after_convolution("Resize")
    resize = next(node for node in proto.graph.node if node.op_type == "Resize")
    resize.CopyFrom(helper.make_node("Resize", list(resize.input), list(resize.output), "op", **beyond))
    roi = np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(roi, "c0"))
    backend = backend_of(proto, images())
    assert ("op", "Resize", "its values leave the range of its input") in backend.facts().capability.excluded
    expected, actual = (backend.load(c).predict(images()[0])[0] for c in (None, default_config(backend)))
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("mask", [-1e9, -1e4, float(np.finfo(np.float32).min)])
def test_a_masked_transformer_keeps_its_outputs_by_default(mask: float) -> None:
    backend = backend_of(attention_model(mask), sentences())
    feed = sentences()[0]
    expected = backend.load(None).predict(feed)[0]
    actual = backend.load(default_config(backend)).predict(feed)[0]
    assert np.square(expected - actual).mean() < 2e-3 * np.square(expected).mean()


def test_recipes_name_the_first_and_last_group() -> None:
    recipes = {recipe.name: recipe.fp32_ops for recipe in inspect(prepare(convolution_model())).recipes}
    assert recipes["first_conv_or_matmul_quantization"] == ("conv1", "relu1")
    assert recipes["last_conv_or_matmul_quantization"] == ("fc",)


def test_reduce_range_where_the_processor_lacks_vnni() -> None:
    assert needs_reduce_range(frozenset({"avx2"}), "x86_64")
    assert not needs_reduce_range(frozenset({"avx2", "avx512_vnni"}), "x86_64")
    assert not needs_reduce_range(frozenset({"asimd"}), "aarch64")


@pytest.mark.parametrize(("dilation", "runs"), [(1, "QLinearAveragePool"), (2, "AveragePool")])
@pytest.mark.parametrize("quant_format", ["QDQ", "QOperator"])
def test_an_average_pool_may_say_its_dilations(dilation: int, runs: str, quant_format: str) -> None:
    """It may since opset 19; ONNX Runtime's integer kernel has no such attribute and refuses the graph."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(8, 3, 3, 3)) / 4, "w2": rng.normal(size=(8, 8, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1"),
        helper.make_node("AveragePool", ["c1"], ["p"], "pool", kernel_shape=[2, 2], dilations=[dilation] * 2),
        helper.make_node("Conv", ["p", "w2"], ["y"], "conv2"),
    ]
    constants = {name: value.astype(np.float32) for name, value in weights.items()}
    proto = model(nodes, {"x": ["batch", 3, 12, 12]}, ["y"], constants, opset=19)
    proto.ir_version = 9
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto, quant_format=quant_format)))
    backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate(images())))
    capability = backend.facts().capability
    assert ("pool" in {op.name for op in capability.ops}) == (dilation == 1)
    quantized = backend.load(default_config(backend))
    expected, actual = (loaded.predict(images()[0])[0] for loaded in (backend.load(None), quantized))
    assert np.square(expected - actual).mean() < 2e-3 * np.square(expected).mean()
    executed = [node.op_type for node in optimized_graph(quantized.native.SerializeToString()).graph.node]
    assert executed.count("QLinearConv") == 2
    assert runs in executed
