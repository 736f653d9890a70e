"""What the graph is rewritten to before and after quantization computes the same, in faster kernels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distune.backends.cpu import has_amx
from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.kernels import use_fast_kernels
from distune.backends.onnxruntime.preprocess import prepare
from distune.backends.onnxruntime.session import create_session, optimized_graph
from distune.space.op_config import FP32
from tests.backends.onnx_models import backend_of, convolution_model, default_config, images, model


def shortcut_model(value: list[float] | None = None) -> onnx.ModelProto:
    """A residual block of half the resolution: padding before its convolution, slices and new channels beside it."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 5,
        "w2": rng.normal(size=(16, 8, 3, 3)) / 8,
        "wf": rng.normal(size=(10, 16)),
    }
    constants = {name: array.astype(np.float32) for name, array in constants.items()}
    pads = {"around": [0, 0, 0, 0, 0, 0, 1, 1], "channels": [0, 4, 0, 0, 0, 4, 0, 0]}
    integers = {"zero": [0], "end": [1 << 40], "two": [2], "rows": [2], "columns": [3], **pads}
    constants |= {name: np.array(values, np.int64) for name, values in integers.items()}
    around = ["r1", "around"]
    if value is not None:
        constants["value"] = np.array(value[0], np.float32)
        around.append("value")
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Pad", around, ["padded"], "around"),
        helper.make_node("Conv", ["padded", "w2"], ["c2"], "conv2", strides=[2, 2]),
        helper.make_node("Slice", ["r1", "zero", "end", "rows", "two"], ["s1"], "slice1"),
        helper.make_node("Slice", ["s1", "zero", "end", "columns", "two"], ["s2"], "slice2"),
        helper.make_node("Pad", ["s2", "channels"], ["wide"], "widen"),
        helper.make_node("Add", ["c2", "wide"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["r2"], "relu2"),
        helper.make_node("ReduceMean", ["r2"], ["mean"], "mean", axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["mean", "wf"], ["y"], "fc", transB=1),
    ]
    return model(nodes, {"x": ["batch", 3, 12, 12]}, ["y"], constants)


def executed(backend: OnnxRuntimeBackend) -> Counter[str]:
    """Op types of the default config's graph as ONNX Runtime executes it."""
    loaded = backend.load(default_config(backend))
    return Counter(node.op_type for node in optimized_graph(loaded.native.SerializeToString()).graph.node)


def test_nothing_inside_a_residual_network_runs_in_floating_point() -> None:
    types = executed(backend_of(shortcut_model(), images()))
    assert types["QuantizeLinear"] == types["DequantizeLinear"] == 1  # of what goes in and what comes out
    assert types["QLinearGlobalAveragePool"] == types["QLinearAdd"] == types["QGemm"] == 1
    assert not types.keys() & {"Conv", "ReduceMean", "Add", "Relu", "Gemm"}


def test_a_short_cut_without_weights_is_one_convolution() -> None:
    proto = shortcut_model()
    types = executed(backend_of(proto, images()))
    assert types["QLinearConv"] == 3
    assert types["Slice"] == 0
    assert types["Pad"] == 1  # a fourth colour
    next(tensor for tensor in proto.graph.initializer if tensor.name == "end").CopyFrom(
        numpy_helper.from_array(np.array([11]), "end")
    )
    types = executed(backend_of(proto, images()))  # not all of the image
    assert types["QLinearConv"] == types["Pad"] == 2
    assert types["Slice"] == 1


@pytest.mark.parametrize("value", [None, [0.0], [1.0]])
def test_only_padding_by_zeros_moves_into_a_convolution(value: list[float] | None) -> None:
    proto = shortcut_model(value)
    prepared = prepare(proto)
    names = [node.name for node in prepared.proto.graph.node]
    assert ("around" in names) == (value == [1.0])
    assert "slice1" not in names
    backend, feed = backend_of(proto, images()), images(seed=9)[0]
    expected = backend.load(None).predict(feed)[0]
    simplified = create_session(prepared.proto).run(None, feed)[0]
    np.testing.assert_allclose(simplified, expected, rtol=1e-4, atol=1e-5)
    actual = backend.load(default_config(backend)).predict(feed)[0]
    assert np.square(expected - actual).mean() < 5e-3 * np.square(expected).mean()


def test_padding_stays_where_a_convolution_pads_by_itself_or_another_op_reads_it_too() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(3, 3, 3, 3)).astype(np.float32), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    padding = helper.make_node("Pad", ["x", "pads"], ["p"], "pad")
    same = helper.make_node("Conv", ["p", "w"], ["y"], "conv", auto_pad="SAME_UPPER")
    plain = helper.make_node("Conv", ["p", "w"], ["c"], "conv", pads=[1, 1, 1, 1])
    both = helper.make_node("Mul", ["c", "p"], ["y"], "mul")
    for nodes in ([padding, same], [padding, plain, both]):
        prepared = prepare(model(nodes, {"x": [4, 3, 12, 12]}, ["y"], constants))
        assert "Pad" in [node.op_type for node in prepared.proto.graph.node]


@pytest.mark.parametrize("proto", [convolution_model(), shortcut_model()], ids=["plain", "shortcut"])
@pytest.mark.parametrize("amx", [True, False])
def test_no_number_changes(proto: onnx.ModelProto, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distune.backends.onnxruntime.kernels._LARGE_WEIGHT", 1)
    backend = backend_of(proto, images())
    config = default_config(backend)
    for chosen in (config, config.with_ops({"conv2": FP32, "relu2": FP32})):
        plain = backend._proto(chosen)
        fast = onnx.ModelProto.FromString(plain.SerializeToString())
        use_fast_kernels(fast, prepare(proto).proto, amx)
        onnx.checker.check_model(fast)
        feed = images(seed=11)[0]
        expected = create_session(plain).run(None, feed)[0]
        np.testing.assert_array_equal(create_session(fast).run(None, feed)[0], expected)


def weight_of(proto: onnx.ModelProto, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers and zero point of an op's weight."""
    index = GraphIndex(proto)
    dequantize = index.producer[index.nodes[name].input[1]]
    values, _, zero_point = (numpy_helper.to_array(index.initializers[tensor]) for tensor in dequantize.input)
    return values, zero_point


def test_three_colours_are_filled_up_to_four_channels() -> None:
    backend = backend_of(convolution_model(), images())
    proto = backend.load(default_config(backend)).native
    filled, _ = weight_of(proto, "conv1")
    assert filled.shape == (8, 4, 3, 3)
    assert not filled[:, 3].any()
    assert weight_of(proto, "conv3")[0].shape == (16, 8, 1, 1)


def test_only_large_weights_are_moved_and_only_for_amx() -> None:
    rng = np.random.default_rng(0)
    shapes = {"small": (64, 3, 3, 3), "large": (64, 64, 3, 3)}
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "small"], ["a"], "small", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "large"], ["y"], "large"),
    ]
    backend = backend_of(model(nodes, {"x": [4, 3, 12, 12]}, ["y"], constants), images())
    for amx in (True, False):
        proto = backend._proto(default_config(backend))
        use_fast_kernels(proto, backend._model.proto, amx)
        assert not weight_of(proto, "small")[1].any()
        assert set(weight_of(proto, "large")[1].ravel()) == ({-1} if amx else {0})


def test_an_exported_model_is_written_for_the_processor_that_it_was_tuned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distune.backends.onnxruntime.kernels._LARGE_WEIGHT", 1)
    tuned = backend_of(convolution_model(), images())
    config = default_config(tuned)
    exported = tuned.export(config)
    monkeypatch.setattr("distune.backends.onnxruntime.backend.has_amx", lambda: not has_amx())
    elsewhere = backend_of(convolution_model(), images())
    assert elsewhere.apply(exported.deploy, config).files == exported.files
    assert elsewhere.export(config).files != exported.files


def test_amx_takes_tiles_and_integers() -> None:
    assert has_amx(frozenset({"amx_tile", "amx_int8", "avx2"}))
    assert not has_amx(frozenset({"amx_tile", "amx_bf16"}))
