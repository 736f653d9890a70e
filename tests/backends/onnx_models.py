"""Small ONNX models, made in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.config.job import ModelSpec, TuningJob
from distune.space.op_config import TuningConfig

Feeds = list[dict[str, np.ndarray]]
SAMPLES = 8


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    input_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of ``nodes`` with inputs of the given shapes and outputs of unknown shape."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, input_type, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convolution_model(planted: bool = False) -> onnx.ModelProto:
    """conv1, relu1, depthwise conv2, relu2, conv3, pool, flatten, fc; ``planted``: conv2 is bad in 8 bit per tensor."""
    rng = np.random.default_rng(0)
    depthwise = rng.normal(size=(8, 1, 3, 3))
    if planted:
        depthwise[0] *= 1000
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 5,
        "b1": rng.normal(size=8) / 10,
        "w2": depthwise / 3,
        "b2": rng.normal(size=8) / 10,
        "w3": rng.normal(size=(16, 8, 1, 1)) / 3,
        "wf": rng.normal(size=(10, 16)),
        "bf": rng.normal(size=10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "conv3"),
        helper.make_node("GlobalAveragePool", ["c3"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["y"], "fc", transB=1),
    ]
    constants = {name: value.astype(np.float32) for name, value in constants.items()}
    return model(nodes, {"x": ["batch", 3, 12, 12]}, ["y"], constants)


def attention_model(mask: float = -1e9) -> onnx.ModelProto:
    """Token ids and a mask through an embedding, one attention head and a projection."""
    rng = np.random.default_rng(1)
    constants: dict[str, Any] = {
        "table": rng.normal(size=(50, 16)),
        "wq": rng.normal(size=(16, 16)) / 4,
        "wk": rng.normal(size=(16, 16)) / 4,
        "wv": rng.normal(size=(16, 16)) / 4,
        "wo": rng.normal(size=(16, 16)) / 4,
        "bo": rng.normal(size=16),
        "one": np.array(1.0),
        "large": np.array(mask),
    }
    constants = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    constants["axes"] = np.array([1], np.int64)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embedding"),
        helper.make_node("Cast", ["mask"], ["m"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "m"], ["n"], "invert"),
        helper.make_node("Mul", ["n", "large"], ["l"], "scale_mask"),
        helper.make_node("Unsqueeze", ["l", "axes"], ["u"], "expand_mask"),
        helper.make_node("MatMul", ["e", "wq"], ["q"], "query"),
        helper.make_node("MatMul", ["e", "wk"], ["k"], "key"),
        helper.make_node("MatMul", ["e", "wv"], ["v"], "value"),
        helper.make_node("Transpose", ["k"], ["kt"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], "scores"),
        helper.make_node("Add", ["s", "u"], ["sm"], "add_mask"),
        helper.make_node("Softmax", ["sm"], ["a"], "softmax"),
        helper.make_node("MatMul", ["a", "v"], ["o"], "context"),
        helper.make_node("MatMul", ["o", "wo"], ["p"], "output"),
        helper.make_node("Add", ["p", "bo"], ["y"], "output_bias"),
    ]
    shapes = {"ids": ["batch", "length"], "mask": ["batch", "length"]}
    return model(nodes, shapes, ["y"], constants, input_type=TensorProto.INT64)


def images(count: int = 3, seed: int = 5) -> Feeds:
    """Batches of 4 for ``convolution_model``."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(4, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


def sentences(count: int = 3) -> Feeds:
    """Batches of 4 for ``attention_model``."""
    rng = np.random.default_rng(6)
    lengths = rng.integers(3, 8, size=(count, 4, 1))
    return [
        {"ids": rng.integers(0, 50, size=(4, 7)), "mask": (np.arange(7) < lengths[i]).astype(np.int64)}
        for i in range(count)
    ]


def backend_of(proto: onnx.ModelProto, feeds: Feeds) -> OnnxRuntimeBackend:
    """A calibrated backend for a live model."""
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto)))
    backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate(feeds)))
    return backend


def default_config(backend: OnnxRuntimeBackend) -> TuningConfig:
    """Every op by its first option."""
    ops = backend.facts().capability.ops
    return TuningConfig(tuple((op.name, op.options[0]) for op in ops), sampling_size=SAMPLES)
