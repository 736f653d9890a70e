"""The QOperator form computes what the QDQ form does, without Q/DQ pairs around quantized ops."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.options import OP_KINDS
from distune.config.job import ModelSpec, TuningJob
from distune.space.op_config import FP32
from tests.backends.onnx_models import (
    SAMPLES,
    Feeds,
    attention_model,
    backend_of,
    convolution_model,
    default_config,
    images,
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


def test_what_is_exported_is_what_was_judged() -> None:
    backend = qoperator_backend(convolution_model(), images())
    config = default_config(backend)
    exported = backend.export(config)
    assert exported.files["model.onnx"] == backend.load(config).native.SerializeToString(deterministic=True)
    assert backend.apply(exported.deploy, config).files == exported.files
