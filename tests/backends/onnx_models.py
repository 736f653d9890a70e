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


def transformer_model(layers: int = 3, pre_norm: bool = False, fused: bool = False) -> onnx.ModelProto:
    """Encoder layers of width 16 with a two-layer feed-forward network, and a classifier at the end.

    Args:
        pre_norm: Normalize before attention and network instead of after each residual addition.
        fused: One Attention node of ONNX Runtime a layer, as its transformer optimizer writes it.
    """
    rng = np.random.default_rng(4)
    constants: dict[str, np.ndarray] = {"scale": np.float32(0.25) * np.ones((), np.float32)}
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        domain = "com.microsoft" if op_type == "Attention" else ""
        nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_out"], name, domain=domain, **attributes))
        return f"{name}_out"

    def constant(name: str, *shape: int) -> str:
        constants[name] = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        return name

    def norm(tensor: str, name: str) -> str:
        constants[f"{name}_g"] = np.ones(16, np.float32)
        return add("LayerNormalization", [tensor, f"{name}_g"], name)

    def attention(tensor: str, at: str) -> str:
        if fused:
            inputs = [tensor, constant(f"{at}_wqkv", 16, 48), constant(f"{at}_bqkv", 48)]
            context = add("Attention", inputs, f"{at}_attention", num_heads=2)
        else:
            q, k, v = (add("MatMul", [tensor, constant(f"{at}_w{x}", 16, 16)], f"{at}_{x}") for x in "qkv")
            keys = add("Transpose", [k], f"{at}_transpose", perm=[0, 2, 1])
            scores = add("Mul", [add("MatMul", [q, keys], f"{at}_scores"), "scale"], f"{at}_scale")
            context = add("MatMul", [add("Softmax", [scores], f"{at}_softmax"), v], f"{at}_context")
        return add("MatMul", [context, constant(f"{at}_wo", 16, 16)], f"{at}_o")

    def network(tensor: str, at: str) -> str:
        up = add("MatMul", [tensor, constant(f"{at}_w1", 16, 32)], f"{at}_up")
        return add("MatMul", [add("Relu", [up], f"{at}_relu"), constant(f"{at}_w2", 32, 16)], f"{at}_down")

    tensor = add("MatMul", ["x", constant("w_in", 8, 16)], "embed")
    for layer in range(layers):
        at = f"l{layer}"
        for part, name in ((attention, "n1"), (network, "n2")):
            if pre_norm:
                tensor = add("Add", [tensor, part(norm(tensor, f"{at}_{name}"), at)], f"{at}_add_{name}")
            else:
                tensor = norm(add("Add", [tensor, part(tensor, at)], f"{at}_add_{name}"), f"{at}_{name}")
    out = add("MatMul", [tensor, constant("w_out", 16, 4)], "classifier")
    nodes.append(helper.make_node("Identity", [out], ["y"], "same"))
    made = model(nodes, {"x": ["batch", 6, 8]}, ["y"], constants)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return made


def sequences(count: int = 3) -> Feeds:
    """Batches of 4 for ``transformer_model``."""
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(size=(4, 6, 8)).astype(np.float32)} for _ in range(count)]
