"""The contract of ``backends.base`` as the ONNX Runtime backend keeps it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from distune.backends.base import backend_class
from distune.backends.onnxruntime.execution import executed_on_integers
from distune.backends.onnxruntime.session import SESSION_OPTIONS, optimized_graph
from distune.backends.statistics import merge
from distune.config.job import ModelSpec, TuningJob
from distune.errors import TrialError, UsageError
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from tests.backends.onnx_models import (
    SAMPLES,
    OnnxRuntimeBackend,
    attention_model,
    backend_of,
    convolution_model,
    default_config,
    images,
    sentences,
)


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return backend_of(convolution_model(), images())


def test_it_is_found_by_the_name_of_its_framework() -> None:
    assert backend_class("onnxruntime") is OnnxRuntimeBackend


def test_facts_describe_the_users_model(backend: OnnxRuntimeBackend) -> None:
    facts = backend.facts()
    (info,) = facts.inputs
    assert (info.name, info.dtype, info.shape) == ("x", "float32", ("batch", 3, 12, 12))
    assert facts.outputs == ("y",)
    assert facts.size_bytes == len(convolution_model().SerializeToString())
    assert facts.versions["onnxruntime"] == ort.__version__
    assert facts.session_options == SESSION_OPTIONS
    json.dumps(dict(facts.session_options))


def test_inputs_that_become_constants_are_told() -> None:
    proto = convolution_model()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("bf", onnx.TensorProto.FLOAT, [10]))
    facts = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=proto))).facts()
    assert [info.name for info in facts.inputs] == ["x"]
    assert any("input bf (1 in all)" in warning for warning in facts.warnings)


def test_another_device_than_the_cpu_is_refused() -> None:
    job = TuningJob(ModelSpec("onnxruntime", live=convolution_model().SerializeToString()), device="gpu")
    with pytest.raises(UsageError, match="run on the CPU"):
        OnnxRuntimeBackend(job)


def test_fp32_is_the_users_model(backend: OnnxRuntimeBackend) -> None:
    feed = images()[0]
    session = ort.InferenceSession(convolution_model().SerializeToString(), providers=["CPUExecutionProvider"])
    loaded = backend.load(None)
    np.testing.assert_allclose(loaded.predict(feed)[0], session.run(None, feed)[0], rtol=1e-5, atol=1e-6)
    assert loaded.native == convolution_model()
    assert loaded.ops_executed_int8 == 0


def test_the_timed_closure_runs_the_feed(backend: OnnxRuntimeBackend) -> None:
    loaded = backend.load(default_config(backend), threads=2)
    run = loaded.timed(images()[0])
    assert run() is None
    assert run() is None


def test_statistics_of_any_sharding_give_the_same_model(backend: OnnxRuntimeBackend) -> None:
    numbered = list(enumerate(images(6)))
    other = backend_of(convolution_model(), images(6))
    expected = other.export(default_config(other)).files
    for shards in (1, 2, 4):
        blobs = [other.calibrate((), numbered[shard::shards][::-1]) for shard in range(shards)]
        other.set_statistics((), SAMPLES, merge(blobs))
        assert other.export(default_config(other)).files == expected


def test_apply_repeats_export_without_data(backend: OnnxRuntimeBackend) -> None:
    config = default_config(backend).with_ops({"conv2": FP32, "relu2": FP32})
    percentile = TensorConfig("uint8", "asym", "per_tensor", "percentile")
    config = config.with_ops({"fc": OpConfig("static", percentile, TensorConfig("int8"))})
    exported = backend.export(config)
    assert list(exported.files) == ["model.onnx"]
    onnx.checker.check_model(onnx.load_model_from_string(exported.files["model.onnx"]))
    saved = json.loads(json.dumps(exported.deploy))
    fresh = OnnxRuntimeBackend(_job())
    assert fresh.apply(saved, config).files == exported.files


def test_export_is_what_was_judged(backend: OnnxRuntimeBackend) -> None:
    config = default_config(backend)
    loaded = backend.load(config)
    data = backend.export(config).files["model.onnx"]
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    feed = images()[0]
    assert np.array_equal(session.run(None, feed)[0], loaded.predict(feed)[0])
    assert loaded.size_bytes == len(data)


def test_a_config_without_quantized_ops_needs_no_statistics() -> None:
    fresh = OnnxRuntimeBackend(_job())
    config = TuningConfig(tuple((op.name, FP32) for op in fresh.facts().capability.ops))
    feed = images()[0]
    np.testing.assert_allclose(
        fresh.load(config).predict(feed)[0], fresh.load(None).predict(feed)[0], rtol=1e-5, atol=1e-6
    )
    assert fresh.export(config).deploy == {}


def test_a_recipe_keeps_its_ops_in_fp32(backend: OnnxRuntimeBackend) -> None:
    config = default_config(backend)
    by_recipe = backend.export(config.with_recipes({"first_conv_or_matmul_quantization": False})).files
    by_hand = backend.export(config.with_ops({"conv1": FP32, "relu1": FP32})).files
    assert by_recipe == by_hand != backend.export(config).files
    same = backend.export(config.with_recipes({"first_conv_or_matmul_quantization": True})).files
    assert same == backend.export(config).files
    with pytest.raises(TrialError, match="no recipe 'no_such'"):
        backend.load(config.with_recipes({"no_such": True}))


def test_ops_that_do_not_run_on_integers_are_told_with_the_reason() -> None:
    in_fp32 = optimized_graph(convolution_model().SerializeToString(), level="ORT_ENABLE_BASIC")
    execution = executed_on_integers(in_fp32, ["conv1", "gone"])
    assert execution.integer == ()
    assert "floating point" in execution.reasons["conv1"]
    assert "not found" in execution.reasons["gone"]


def test_values_that_are_left_out_of_a_range_are_told() -> None:
    feeds = images()
    feeds[0]["x"][0, 0, 0, 0] = np.inf
    backend = backend_of(convolution_model(), feeds)
    assert any("tensor x: 1 values not finite" in line for line in backend.load(default_config(backend)).warnings)


def test_what_onnx_runtime_warns_of_belongs_to_the_model_and_not_on_the_console(
    caplog: pytest.LogCaptureFixture,
) -> None:
    proto = convolution_model()
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "bf")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, 1e30, np.float32), "bf"))
    backend = backend_of(proto, images())
    config = default_config(backend)
    asymmetric = OpConfig("static", config.by_name["fc"].activation, TensorConfig("uint8", "asym"))
    loaded = backend.load(config.with_ops({"fc": asymmetric}))
    assert any("exceeds the range of a int32" in line for line in loaded.warnings)
    assert caplog.records == []


def test_op_mse_scores_every_group_in_one_pass(backend: OnnxRuntimeBackend) -> None:
    config = default_config(backend)
    scores = backend.probe("op_mse", config, (), images(), {})
    assert scores.keys() == {op.group for op in backend.facts().capability.ops}
    assert all(0 < score < 1e-2 for score in scores.values())
    assert backend.probe("op_mse", config, ("fc",), images(), {}) == {"fc": scores["fc"]}


def test_op_mse_ranks_the_op_with_the_worst_quantization_first() -> None:
    backend = backend_of(convolution_model(planted=True), images())
    coarse = OpConfig("static", TensorConfig("uint8", "asym"), TensorConfig("int8", "sym", "per_tensor"))
    config = TuningConfig(
        tuple((op.name, coarse if op.name == "conv2" else FP32) for op in backend.facts().capability.ops),
        sampling_size=SAMPLES,
    )
    scores = backend.probe("op_mse", config, (), images(), {})
    assert scores["conv1"] < scores["conv2"]


def test_op_sensitivity_changes_one_group_at_a_time(backend: OnnxRuntimeBackend) -> None:
    config = default_config(backend)
    scores = backend.probe("op_sensitivity", config, ("conv1", "fc"), images(), {"direction": "fallback"})
    assert scores.keys() == {"conv1", "fc"}
    fp32 = TuningConfig(tuple((name, FP32) for name, _ in config.ops), sampling_size=SAMPLES)
    alone = backend.probe("op_sensitivity", fp32, ("conv1", "fc"), images(), {"direction": "revert"})
    assert all(0 < score < 1e-2 for score in (*scores.values(), *alone.values()))
    with pytest.raises(TrialError, match="direction 'sideways'"):
        backend.probe("op_sensitivity", config, (), images(), {"direction": "sideways"})


def test_unknown_probes_and_groups_are_trial_errors(backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(TrialError, match="no probe 'weather'"):
        backend.probe("weather", default_config(backend), (), images(), {})
    with pytest.raises(TrialError, match="no group is named 'relu1'"):
        backend.probe("op_mse", default_config(backend), ("relu1",), images(), {})


def test_integer_inputs_are_fed_as_they_are() -> None:
    backend = backend_of(attention_model(), sentences())
    assert [info.dtype for info in backend.facts().inputs] == ["int64", "int64"]
    assert backend.load(default_config(backend)).predict(sentences()[0])[0].shape == (4, 7, 16)


def _job() -> TuningJob:
    return TuningJob(ModelSpec("onnxruntime", live=convolution_model()))
