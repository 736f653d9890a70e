"""fp16 as a precision to fall back to: offered where a rule names it, half the bytes, nearly fp32's numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.half import FP16
from distune.config.job import Constraint, ModelSpec, TuningJob
from distune.space.op_config import FP32, TuningConfig
from distune.space.tuning_space import build_space
from tests.backends.onnx_models import (
    SAMPLES,
    Feeds,
    attention_model,
    convolution_model,
    default_config,
    images,
    model,
    sentences,
)

RULE = Constraint("model", weight={"dtype": ("int8", "uint8", "fp16", "fp32")})


def half_backend(proto: onnx.ModelProto, feeds: Feeds) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto), constraints=(RULE,)))
    backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate(feeds)))
    return backend


CASES = [(convolution_model(), images()), (attention_model(), sentences())]


def test_it_is_offered_only_where_a_rule_names_it() -> None:
    plain = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=convolution_model())))
    assert all(FP16 not in op.options for op in plain.facts().capability.ops)
    offered = half_backend(convolution_model(), images()).facts().capability
    assert all(op.options[-2:] == (FP16, FP32) for op in offered.ops)
    assert build_space(offered, (RULE,), "static", {}, (SAMPLES,)).precisions == ("fp16", "fp32")


def test_a_weight_beyond_its_range_stays_in_fp32() -> None:
    large = convolution_model()
    large.graph.initializer[0].raw_data = (np.ones((8, 3, 3, 3), np.float32) * 1e5).tobytes()
    options = {op.name: op.options for op in half_backend(large, images()).facts().capability.ops}
    assert FP16 not in options["conv1"]
    assert FP16 in options["conv2"]


@pytest.mark.parametrize(("proto", "feeds"), CASES, ids=["convolution", "attention"])
def test_all_ops_in_fp16_keep_the_outputs_and_halve_the_bytes(proto: onnx.ModelProto, feeds: Feeds) -> None:
    backend = half_backend(proto, feeds)
    ops = backend.facts().capability.ops
    loaded = backend.load(TuningConfig(tuple((op.name, FP16) for op in ops)))
    expected, actual = backend.load(None).predict(feeds[0])[0], loaded.predict(feeds[0])[0]
    np.testing.assert_allclose(actual, expected, rtol=2e-2, atol=2e-2)
    kinds = {tensor.data_type for tensor in loaded.native.graph.initializer if np.prod(tensor.dims) > 40}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert loaded.ops_executed_int8 == 0


@pytest.mark.parametrize(("proto", "feeds"), CASES, ids=["convolution", "attention"])
def test_each_group_alone_in_fp16_among_static_ops(proto: onnx.ModelProto, feeds: Feeds) -> None:
    backend = half_backend(proto, feeds)
    space = build_space(backend.facts().capability, (RULE,), "static", {}, (SAMPLES,))
    fp32 = backend.load(None).predict(feeds[0])[0]
    for group in space.groups:
        config = space.fallback(default_config(backend), [group], "fp16")
        half = backend.load(config).predict(feeds[0])[0]
        full = backend.load(space.fallback(default_config(backend), [group])).predict(feeds[0])[0]
        power = np.square(fp32).mean()
        assert np.square(half - fp32).mean() / power < np.square(full - fp32).mean() / power + 1e-3, group
        exported = backend.export(config)
        assert backend.apply(exported.deploy, config).files == exported.files


def test_only_outputs_of_its_own_type_turn_to_fp16() -> None:
    """A MaxPool's indices are integers in any precision."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32) / 4
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("MaxPool", ["c"], ["p", "at"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxUnpool", ["p", "at"], ["y"], "unpool", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    proto = model(nodes, {"x": ["batch", 3, 12, 12]}, ["p", "y"], {"w": weight})
    backend = half_backend(proto, images())
    ops = backend.facts().capability.ops
    assert {op.name for op in ops} == {"conv", "pool"}
    loaded = backend.load(TuningConfig(tuple((op.name, FP16) for op in ops)))
    for expected, actual in zip(backend.load(None).predict(images()[0]), loaded.predict(images()[0]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-2, atol=2e-2)
