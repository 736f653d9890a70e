"""Where integers end: a product that only fp32 ops read gives floating point, without a pair behind it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.session import optimized_graph
from distune.space.op_config import FP32
from tests.backends.onnx_models import backend_of, default_config, sequences, transformer_model


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return backend_of(transformer_model(), sequences())


def readers_of(proto: onnx.ModelProto, name: str) -> set[str]:
    node = next(node for node in proto.graph.node if node.name == name)
    return {reader.op_type for reader in proto.graph.node if node.output[0] in reader.input}


def test_products_before_fp32_ops_are_not_rounded_again(backend: OnnxRuntimeBackend) -> None:
    proto = backend.load(default_config(backend)).native
    assert readers_of(proto, "l0_o") == {"Add"}
    assert readers_of(proto, "l0_down") == {"Add"}
    assert readers_of(proto, "l0_scores") == {"Mul"}
    assert readers_of(proto, "l0_q") == {"QuantizeLinear"}
    assert readers_of(proto, "l0_context") == {"QuantizeLinear"}


def test_they_run_on_integers_all_the_same(backend: OnnxRuntimeBackend) -> None:
    loaded = backend.load(default_config(backend))
    assert (loaded.ops_executed_int8, dict(loaded.reasons)) == (20, {})
    types = [node.op_type for node in optimized_graph(loaded.native).graph.node]
    assert types.count("MatMulIntegerToFloat") == 3 * 3 + 1  # scores, o and down of each layer, and the classifier


def test_when_the_reader_falls_back_the_pair_before_it_goes(backend: OnnxRuntimeBackend) -> None:
    config = default_config(backend)
    proto = backend.load(config.with_ops({"l1_o": FP32})).native
    assert readers_of(backend.load(config).native, "l1_context") == {"QuantizeLinear"}
    assert readers_of(proto, "l1_context") == {"MatMul"}


def test_the_outputs_stay_close_to_fp32(backend: OnnxRuntimeBackend) -> None:
    feed = sequences()[0]
    expected = backend.load(None).predict(feed)[0]
    actual = backend.load(default_config(backend)).predict(feed)[0]
    assert np.square(expected - actual).mean() < 2e-3 * np.square(expected).mean()
