"""The quantized graph is ONNX Runtime's own, and what falls back really runs in fp32."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data
from onnxruntime.quantization.qdq_quantizer import QuantizationParams

from distune.backends.onnxruntime.execution import executed_on_integers
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import prepare
from distune.backends.onnxruntime.quantizer import CachingQdqQuantizer, WeightCache
from distune.backends.onnxruntime.session import create_session, optimized_graph
from distune.backends.statistics import CalibrationStatistics
from distune.config.job import ModelSpec, TuningJob
from distune.errors import TrialError
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from tests.backends.onnx_models import (
    SAMPLES,
    OnnxRuntimeBackend,
    attention_model,
    backend_of,
    convolution_model,
    default_config,
    images,
    model,
    sentences,
)


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_default_config_is_quantize_static_with_the_same_ranges(tmp_path: Path, per_channel: bool) -> None:
    proto = convolution_model()
    backend = backend_of(proto, images())
    config = default_config(backend)
    if not per_channel:
        weight = TensorConfig("int8", "sym", "per_tensor")
        config = config.with_ops(
            {name: OpConfig("static", op.activation, weight) for name, op in config.ops if op.weight is not None}
        )
    saved = backend.export(config).deploy["ranges"]
    ranges = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in saved.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, ranges), tmp_path / "ranges.json")
    path = tmp_path / "reference.onnx"
    quantize_static(
        prepare(proto).proto,
        path,
        calibration_cache_path=tmp_path / "ranges.json",
        nodes_to_quantize=list(config.quantized_ops),
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    reference = create_session(path.read_bytes())
    for feed in images(4, seed=11):
        assert np.array_equal(reference.run(None, feed)[0], backend.load(config).predict(feed)[0])


def test_a_second_quantization_from_remembered_weights_is_the_same() -> None:
    backend = backend_of(convolution_model(), images())
    config = default_config(backend)
    first = backend.export(config).files
    backend.load(config.with_ops({"conv2": FP32, "relu2": FP32}))
    assert backend.export(config).files == first
    assert backend_of(convolution_model(), images()).export(config).files == first


def initializer(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in proto.graph.initializer if tensor.name == name))


def test_types_and_schemes_are_those_of_each_op() -> None:
    backend = backend_of(convolution_model(), images())
    symmetric = OpConfig("static", TensorConfig("uint8", "sym"), TensorConfig("int8", "sym", "per_tensor"))
    asymmetric = OpConfig("static", TensorConfig("uint8", "asym"), TensorConfig("uint8", "asym"))
    config = default_config(backend).with_ops({"conv1": symmetric, "conv3": asymmetric})
    proto = backend.load(config).native
    assert initializer(proto, "x_zero_point") == 128
    assert initializer(proto, "w1_scale").shape == ()
    assert initializer(proto, "w2_scale").shape == (8,)
    assert initializer(proto, "w3_quantized").dtype == np.uint8
    assert initializer(proto, "wf_scale").shape == (10,)


def test_scale_and_zero_point_follow_from_the_calibrated_range() -> None:
    feeds = images()
    backend = backend_of(convolution_model(), feeds)
    proto = backend.load(default_config(backend)).native
    everything = np.concatenate([feed["x"].ravel() for feed in feeds])
    scale = (float(everything.max()) - float(everything.min())) / 255
    assert initializer(proto, "x_scale") == pytest.approx(scale, rel=1e-6)
    assert initializer(proto, "x_zero_point") == round(-float(everything.min()) / scale)


def test_the_first_quantized_consumer_decides_about_a_shared_tensor() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first"),
        helper.make_node("Conv", ["x", "w2"], ["b"], "second"),
        helper.make_node("Concat", ["a", "b"], ["y"], "concat", axis=1),
    ]
    weights = {name: rng.normal(size=(4, 3, 1, 1)).astype(np.float32) for name in ("w1", "w2")}
    backend = backend_of(model(nodes, {"x": ["n", 3, 12, 12]}, ["y"], weights), images())
    signed = OpConfig("static", TensorConfig("int8", "sym"), TensorConfig("int8", "sym", "per_channel"))
    config = default_config(backend)
    assert initializer(backend.load(config.with_ops({"second": signed})).native, "x_zero_point").dtype == np.uint8
    assert initializer(backend.load(config.with_ops({"first": signed})).native, "x_zero_point").dtype == np.int8


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_relu_stays_where_a_symmetric_range_does_not_clip_at_zero(dtype: str) -> None:
    backend = backend_of(convolution_model(), images())
    activation = TensorConfig(dtype, "sym")
    config = TuningConfig(
        tuple(
            (name, OpConfig("static", activation, op.weight if op.weight else None))
            for name, op in default_config(backend).ops
        ),
        sampling_size=SAMPLES,
    )
    loaded, feed = backend.load(config), images()[0]
    assert sum(node.op_type == "Relu" for node in loaded.native.graph.node) == 2
    expected, actual = backend.load(None).predict(feed)[0], loaded.predict(feed)[0]
    assert np.square(expected - actual).mean() < 5e-3 * np.square(expected).mean()


@pytest.mark.parametrize("cut_off", ["Relu", "Clip"])
def test_an_output_of_the_graph_keeps_what_an_activation_behind_it_cuts_off(cut_off: str) -> None:
    rng = np.random.default_rng(0)
    bounds = ["zero", "one"] if cut_off == "Clip" else []
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["raw"], "head"),
        helper.make_node(cut_off, ["raw", *bounds], ["cut"], "cut_off"),
    ]
    constants = {"w": rng.normal(size=(4, 3, 1, 1)), "zero": np.zeros(()), "one": np.ones(())}
    arrays = {name: array.astype(np.float32) for name, array in constants.items()}
    backend = backend_of(model(nodes, {"x": ["n", 3, 12, 12]}, ["raw", "cut"], arrays), images())
    assert "cut_off" in default_config(backend).quantized_ops
    feed = images()[0]
    fp32, quantized = backend.load(None).predict(feed), backend.load(default_config(backend)).predict(feed)
    for expected, actual in zip(fp32, quantized, strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(fp32[0]).max())


GROUPS = ("conv1", "conv2", "conv3", "pool", "fc")


def fallback(backend: OnnxRuntimeBackend, groups: tuple[str, ...]) -> TuningConfig:
    members = [op.name for op in backend.facts().capability.ops if op.group in groups]
    return default_config(backend).with_ops(dict.fromkeys(members, FP32))


@pytest.mark.parametrize("groups", [c for size in (1, 2, 3) for c in combinations(GROUPS, size)], ids="+".join)
def test_what_falls_back_runs_in_fp32_and_takes_its_quantization_along(groups: tuple[str, ...]) -> None:
    backend = backend_of(convolution_model(), images())
    config = fallback(backend, groups)
    loaded = backend.load(config)
    weighted = {"conv1": "w1", "conv2": "w2", "conv3": "w3", "fc": "wf"}
    assert loaded.ops_executed_int8 == len(weighted.keys() - set(groups))

    index = GraphIndex(loaded.native)
    quantized = set(config.quantized_ops)
    for node in loaded.native.graph.node:
        if node.op_type == "QuantizeLinear":
            before = index.producer.get(node.input[0])
            dequantize = index.only_consumer(node.output[0])
            if dequantize is not None and dequantize.op_type == "Pad":  # channels for the kernel
                dequantize = index.only_consumer(dequantize.output[0])
            after = index.consumers.get(dequantize.output[0], []) if dequantize is not None else []
            names = {before.name if before is not None else "", *(reader.name for reader in after)}
            # A quantized Relu is merged into the range; what it followed, conv1 or conv2, is quantized too.
            assert names & quantized, f"{node.name} sits between fp32 ops"

    executed = optimized_graph(loaded.native.SerializeToString())
    fallen = [name for name in groups if name in weighted]
    assert executed_on_integers(executed, fallen).integer == ()
    feed = images()[0]
    expected, actual = backend.load(None).predict(feed)[0], loaded.predict(feed)[0]
    assert np.square(expected - actual).mean() < 5e-3 * np.square(expected).mean()


def test_a_fallen_back_convolution_is_not_quantized_again_in_a_default_session() -> None:
    """Without the guard the optimizer quantizes its weight, per tensor, and runs it as QLinearConv."""
    backend = backend_of(convolution_model(planted=True), images())
    proto = backend.load(fallback(backend, ("conv2",))).native
    assert executed_on_integers(optimized_graph(proto.SerializeToString()), ["conv2"]).integer == ()
    guards = [node for node in proto.graph.node if node.op_type == "Max"]
    assert len(guards) == 1

    guards[0].op_type = "Identity"  # what it would be without
    del guards[0].input[1]
    assert executed_on_integers(optimized_graph(proto.SerializeToString()), ["conv2"]).integer == ("conv2",)


def test_the_guard_is_only_there_where_the_optimizer_would_strike() -> None:
    backend = backend_of(convolution_model(), images())
    for groups in ((), ("conv1",), ("fc",), GROUPS):
        proto = backend.load(fallback(backend, groups)).native
        assert not any(node.op_type == "Max" for node in proto.graph.node), groups


def test_a_weight_shared_with_an_op_that_fell_back_stays_exact_there() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "kept"),
        helper.make_node("Sigmoid", ["a"], ["s"], "sigmoid"),
        helper.make_node("Conv", ["s", "w"], ["y"], "quantized"),
    ]
    weight = rng.normal(size=(3, 3, 1, 1)).astype(np.float32)
    backend = backend_of(model(nodes, {"x": ["n", 3, 12, 12]}, ["y"], {"w": weight}), images())
    proto = backend.load(default_config(backend).with_ops({"kept": FP32})).native
    index = GraphIndex(proto)
    assert np.array_equal(numpy_helper.to_array(index.initializers[index.nodes["kept"].input[1]]), weight)
    assert index.producer[index.nodes["quantized"].input[1]].op_type == "DequantizeLinear"


def tied_model(first: str) -> onnx.ModelProto:
    """A Gemm that transposes its weight and a MatMul by the same weight, whose rows differ; either may come first."""
    weight = np.random.default_rng(0).normal(size=(16, 16)) * np.linspace(0.02, 4, 16)[:, None]
    before, after = ("x", "h"), ("h", "y")
    (gemm_in, gemm_out), (matmul_in, matmul_out) = (before, after) if first == "gemm" else (after, before)
    gemm = helper.make_node("Gemm", [gemm_in, "w"], [gemm_out], "gemm", transB=1)
    matmul = helper.make_node("MatMul", [matmul_in, "w"], [matmul_out], "matmul")
    nodes = [gemm, matmul] if first == "gemm" else [matmul, gemm]
    return model(nodes, {"x": ["batch", 16]}, ["y"], {"w": weight.astype(np.float32)})


@pytest.mark.parametrize("first", ["gemm", "matmul"])
def test_a_weight_whose_readers_have_other_channels_is_quantized_per_tensor(first: str) -> None:
    feed = {"x": np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)}
    backend = backend_of(tied_model(first), [feed])
    config = default_config(backend)
    loaded = backend.load(config)
    assert initializer(loaded.native, "w_scale").shape == ()
    expected, actual = backend.load(None).predict(feed)[0], loaded.predict(feed)[0]
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())
    alone = backend.load(config.with_ops({"matmul": FP32})).native
    assert initializer(alone, "w_scale").shape == (16,)


def test_a_stack_of_matrices_is_quantized_per_tensor() -> None:
    """The integer product knows scales of columns, which such a weight has of every matrix."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 16, 8)).astype(np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    feed = {"x": rng.normal(size=(4, 3, 5, 16)).astype(np.float32)}
    backend = backend_of(model([product], {"x": ["batch", 3, 5, 16]}, ["y"], {"w": weight}), [feed])
    expected = backend.load(None).predict(feed)[0]
    actual = backend.load(default_config(backend)).predict(feed)[0]
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())


def test_an_attention_graph_quantizes_both_kinds_of_matmul() -> None:
    backend = backend_of(attention_model(), sentences())
    loaded = backend.load(default_config(backend))
    types = [node.op_type for node in optimized_graph(loaded.native.SerializeToString()).graph.node]
    assert types.count("QLinearMatMul") == 4
    assert types.count("MatMulIntegerToFloat") == 2  # the scores in front of the softmax, and the last product
    assert "Softmax" in types
    assert loaded.ops_executed_int8 == 5  # embedding and four projections


def test_missing_calibration_and_unknown_ops_are_trial_errors() -> None:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=convolution_model())))
    with pytest.raises(TrialError, match="no calibration statistics for sampling size 8"):
        backend.load(default_config(backend))
    backend.set_statistics((), SAMPLES, CalibrationStatistics().to_bytes())
    with pytest.raises(TrialError, match="not calibrated"):
        backend.load(default_config(backend))
    with pytest.raises(TrialError, match="no op 'nothing'"):
        backend.load(TuningConfig((("nothing", OpConfig("static", TensorConfig("uint8"))),), sampling_size=SAMPLES))


def test_integers_are_remembered_by_the_axis_of_their_scales_too() -> None:
    weight = numpy_helper.from_array(np.array([[1, 2], [4, 8]], np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")]
    proto = model(nodes, {"x": [1, 2]}, ["y"], {"w": numpy_helper.to_array(weight)})
    quantizer = CachingQdqQuantizer(proto, ["matmul"], ["MatMul"], {}, {}, (), WeightCache())
    zero_point, scale = np.zeros(2, np.int8), np.array([1, 2], np.float32)
    parameters = QuantizationParams(zero_point=zero_point, scale=scale, quant_type=TensorProto.INT8)
    by_axis = [numpy_helper.to_array(quantizer._quantized(weight, parameters, axis)) for axis in (0, 1)]
    np.testing.assert_array_equal(by_axis, [[[1, 2], [2, 4]], [[1, 1], [4, 4]]])


def branching_model() -> onnx.ModelProto:
    """conv1, relu1, conv2, and to its output one of their tensors is added, as the first pixel says."""
    rng = np.random.default_rng(0)
    shape = {"x": [4, 3, 12, 12]}

    def branch(op_type: str, tensor: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{op_type}_out", onnx.TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op_type, [tensor], [output.name])], op_type, [], [output])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["above"], "above"),
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node(
            "If", ["above"], ["b"], "branch", then_branch=branch("Abs", "c2"), else_branch=branch("Identity", "c1")
        ),
        helper.make_node("Add", ["c2", "b"], ["y"], "sum"),
    ]
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 5,
        "w2": rng.normal(size=(8, 8, 3, 3)) / 8,
        "limit": np.array(100.0),
    }
    return model(nodes, shape, ["y"], {name: np.asarray(value, np.float32) for name, value in constants.items()})


@pytest.mark.parametrize("quant_format", ["QDQ", "QOperator"])
@pytest.mark.parametrize("brightest", [10.0, 1000.0])
def test_what_only_a_branch_reads_is_still_there(quant_format: str, brightest: float) -> None:
    feed = {"x": images()[0]["x"].copy()}
    feed["x"][0, 0, 0, 0] = brightest
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=branching_model(), quant_format=quant_format)))
    backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate([feed])))
    config = default_config(backend)
    expected = backend.load(None).predict(feed)[0]
    for name in (None, "conv1", "conv2"):
        changed = config if name is None else config.with_ops({name: FP32})
        loaded = backend.load(changed)
        onnx.checker.check_model(loaded.native)  # no node before what it reads
        actual = loaded.predict(feed)[0]
        assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
