"""Weight-only quantization in ONNX: what is offered, what the exported graph holds, and that it computes just that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi import _pybind_state as kernels

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.matmul_nbits import native_bits, pack, runs, stored, unpack
from distune.backends.statistics import merge
from distune.backends.weight_only.grouped import WeightFormat
from distune.backends.weight_only.hqq import hqq
from distune.backends.weight_only.quantize import quantize_weight
from distune.backends.weight_only.rtn import rtn
from distune.config.job import CalibrationSpec, Constraint, ModelSpec, TuningJob
from distune.errors import ModelError, TrialError
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from distune.space.tuning_space import TuningSpace, build_space
from distune.strategies.weight_only import PRESETS, preset_stage
from tests.backends.onnx_models import model

SAMPLES = 8
NODES = ("first", "second", "head", "gemm")


def network() -> onnx.ModelProto:
    """[batch, 5, 48] through MatMul (96), Relu, MatMul (48), MatMul (40); the mean over tokens through a Gemm (7)."""
    rng = np.random.default_rng(2)
    shapes = {"w1": (48, 96), "w2": (96, 48), "w3": (48, 40), "w4": (7, 40), "b4": (7,)}
    constants = {name: rng.normal(size=shape).astype(np.float32) / 5 for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], "first"),
        helper.make_node("Relu", ["h1"], ["r1"], "relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["h2"], "second"),
        helper.make_node("ReduceMean", ["h2"], ["m"], "mean", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["h2", "w3"], ["y"], "head"),
        helper.make_node("MatMul", ["m", "w3"], ["h3"], "pooled"),
        helper.make_node("Gemm", ["h3", "w4", "b4"], ["z"], "gemm", transB=1),
    ]
    return model(nodes, {"x": ["batch", 5, 48]}, ["y", "z"], constants)


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(9)
    spread = np.exp(rng.standard_normal(48))
    return [{"x": (rng.standard_normal((2, 5, 48)) * spread).astype(np.float32)} for _ in range(count)]


def make(recipes: Mapping[str, Any] | None = None, calibrated: bool = True) -> OnnxRuntimeBackend:
    spec = CalibrationSpec([1] if calibrated else None, (SAMPLES,))
    job = TuningJob(
        ModelSpec("onnxruntime", live=network()), approach="weight_only", calibration=spec, recipes=recipes or {}
    )
    backend = OnnxRuntimeBackend(job)
    if calibrated:
        backend.set_statistics((), SAMPLES, backend.calibrate((), enumerate(feeds())))
    return backend


def everywhere(backend: OnnxRuntimeBackend, weight: TensorConfig, **recipes: Any) -> TuningConfig:
    """All ops with one option."""
    option = OpConfig("weight_only", None, weight)
    ops = tuple((op.name, option) for op in backend.facts().capability.ops)
    return TuningConfig(ops, tuple(sorted(recipes.items())), SAMPLES if option.needs_calibration else 0)


def int_weight(algorithm: str = "RTN", bits: int = 4, group_size: int = 32, scheme: str = "asym") -> TensorConfig:
    return TensorConfig("int", scheme, "per_channel", algorithm, bits, group_size)


def space_of(backend: OnnxRuntimeBackend, *constraints: Constraint, **recipes: Any) -> TuningSpace:
    return build_space(backend.facts().capability, constraints, "weight_only", recipes, (SAMPLES,))


def exported(backend: OnnxRuntimeBackend, config: TuningConfig) -> onnx.ModelProto:
    return onnx.load_from_string(backend.export(config).files["model.onnx"])


def nbits_nodes(proto: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Attributes of the MatMulNBits nodes by name, with the number of their inputs."""
    return {
        node.name: {item.name: item.i for item in node.attribute} | {"inputs": len(node.input)}
        for node in proto.graph.node
        if node.op_type == "MatMulNBits"
    }


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return make()


# ----------------------------------------------------------------------------------------------------------- offered


def test_matmul_and_gemm_with_constant_weights_are_offered_each_by_itself(backend: OnnxRuntimeBackend) -> None:
    capability = backend.facts().capability
    assert [(op.name, op.group) for op in capability.ops if op.name in NODES] == [(name, name) for name in NODES]
    assert all(op.has_weight and op.options[-1] == FP32 for op in capability.ops)
    assert capability.ops[0].options[0] == OpConfig("weight_only", None, int_weight("RTN", 4, 32, "sym"))
    assert "relu" in {name for name, _, _ in capability.excluded}


def test_only_widths_that_the_installed_kernel_runs_are_offered(backend: OnnxRuntimeBackend) -> None:
    weights = [option.weight for option in backend.facts().capability.ops[0].options if option.weight]
    assert {weight.bits for weight in weights} == set(native_bits())
    assert {weight.algorithm for weight in weights} == {"RTN", "GPTQ", "AWQ", "HQQ"}
    assert {weight.group_size for weight in weights} == {16, 32, 64, 128, 256, 512, 1024, -1}
    assert all(
        weight.scheme == "asym" and runs(weight.bits, 32, "real") for weight in weights if weight.algorithm == "HQQ"
    )


def test_every_option_that_is_offered_runs_and_computes_what_it_says(backend: OnnxRuntimeBackend) -> None:
    feed = feeds(1)[0]
    weight = numpy_helper.to_array(GraphIndex(network()).initializers["w1"])
    fp32 = backend.load(None).predict(feed)
    for option in backend.facts().capability.ops[0].options[:-1]:
        assert option.weight is not None
        loaded = backend.load(everywhere(backend, option.weight))
        outputs = loaded.predict(feed)
        assert loaded.ops_executed_int8 == 0
        assert set(loaded.reasons) == {op.name for op in backend.facts().capability.ops}
        if option.weight.bits == 8:
            for expected, actual in zip(fp32, outputs, strict=True):
                assert np.abs(expected - actual).max() < 0.05 * np.abs(expected).max()
    alone = everywhere(backend, int_weight("RTN", 2, 16, "asym"))
    alone = alone.with_ops({name: FP32 for name, _ in alone.ops if name != "first"})
    graph = backend.load(alone).native
    graph.graph.output.append(helper.make_empty_tensor_value_info("h1"))
    from distune.backends.onnxruntime.session import create_session

    hidden = create_session(graph.SerializeToString()).run(["h1"], feed)[0]
    expected = feed["x"] @ rtn(weight, WeightFormat(2, 16, "asym")).effective()
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-4)


def test_without_calibration_data_only_what_needs_none_is_offered() -> None:
    bare = make(calibrated=False)
    algorithms = {o.weight.algorithm for op in bare.facts().capability.ops for o in op.options if o.weight}
    assert algorithms == {"RTN", "HQQ"}
    assert bare.load(everywhere(bare, int_weight("HQQ"))).predict(feeds(1)[0])
    with pytest.raises(TrialError, match="no calibration statistics"):
        bare.load(everywhere(bare, int_weight("GPTQ")))


def test_recipes_with_values_that_do_not_exist_are_refused() -> None:
    for recipes, words in (
        ({"gptq_args": {"damp": 1}}, "no setting 'damp'"),
        ({"weight_only_storage": "somehow"}, "native, wider, dequantized"),
        ({"accuracy_level": 7}, "0 to 4"),
    ):
        with pytest.raises(ModelError, match=words):
            make(recipes)


def test_users_rules_narrow_bits_group_size_and_algorithm(backend: OnnxRuntimeBackend) -> None:
    rules = (
        Constraint("model", weight={"bits": (4,), "group_size": (64, 128)}),
        Constraint("op", "head", weight={"algorithm": ("GPTQ",), "bits": (8,)}),
        Constraint("op", "gemm", weight={"dtype": ("fp32",)}),
    )
    space = space_of(backend, *rules)
    first = {(w.bits, w.group_size) for option in space.op["first"].options if (w := option.weight)}
    assert first == {(4, 64), (4, 128)}
    head = {(w.bits, w.algorithm) for option in space.op["head"].options if (w := option.weight)}
    assert head == {(8, "GPTQ")}
    assert space.op["gemm"].options == (FP32,)
    assert space.default().sampling_size == SAMPLES  # one op needs it


# ------------------------------------------------------------------------------------------------------------ layout


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (3, 13)).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(values, bits), bits, 13), values)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_to_nearest_is_that_of_onnxruntimes_quantizer(bits: int, block: int, symmetric: bool) -> None:
    channels, outputs = 768, 24
    weight = np.random.default_rng(bits).standard_normal((channels, outputs)).astype(np.float32)
    per_byte, blocks = 8 // bits, channels // block
    packed = np.zeros((outputs, blocks, block // per_byte), np.uint8)
    zero_points = np.zeros((outputs, -(-blocks // per_byte)), np.uint8)
    scales = np.zeros((outputs, blocks), np.float32)
    quantize = getattr(kernels, f"quantize_matmul_{bits}bits")
    quantize(packed, weight, scales, zero_points, block, outputs, channels, symmetric)
    ours = stored(rtn(weight, WeightFormat(bits, block, "sym" if symmetric else "asym")))
    assert (ours.bits, ours.block) == (bits, block)
    np.testing.assert_array_equal(ours.scales, scales)
    unlike = unpack(ours.packed.reshape(outputs, -1), bits, channels) != unpack(
        packed.reshape(outputs, -1), bits, channels
    )
    assert unlike.mean() < 1e-3  # it multiplies by the inverse of the scale, which turns a few ties
    if not symmetric:
        assert isinstance(ours.zero_points, np.ndarray)
        theirs = unpack(zero_points, bits, blocks)
        np.testing.assert_array_equal(unpack(ours.zero_points.astype(np.uint8), bits, blocks), theirs)


@pytest.mark.parametrize("bits", [2, 4])
def test_hqq_is_that_of_onnxruntimes_quantizer(bits: int) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx_ir", reason="ONNX Runtime's MatMulNBits quantizer needs the package onnx_ir")
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, HQQWeightOnlyQuantizer

    weight = np.random.default_rng(4).standard_normal((200, 24)).astype(np.float32)
    theirs = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=32, bits=bits))
    integers, scales, zeros = theirs.quantize_internal(torch.from_numpy(weight.T.copy()), bits=bits, group_size=32)
    ours = hqq(weight, WeightFormat(bits, 32, "asym"))
    assert (integers.numpy().T[:200] != ours.integers).mean() < 1e-3
    np.testing.assert_allclose(scales.numpy().T, ours.scales, rtol=1e-5)
    np.testing.assert_allclose(zeros.numpy().T, ours.zero_points, atol=1e-4)


@pytest.mark.parametrize("channels", [40, 72, 192, 300])
@pytest.mark.parametrize("bits", range(2, 9))
def test_any_width_and_group_can_be_stored_and_stands_for_the_same_weight(bits: int, channels: int) -> None:
    weight = np.random.default_rng(channels).standard_normal((channels, 9)).astype(np.float32)
    for group_size in (16, 32, 48, 128, 512, -1):
        for algorithm, scheme in (("RTN", "sym"), ("RTN", "asym"), ("HQQ", "asym")):
            if algorithm == "HQQ" and bits > 4:
                continue
            found = quantize_weight(weight, int_weight(algorithm, bits, group_size, scheme))
            kept = stored(found)
            assert kept.bits >= bits
            blocks = kept.packed.shape[1]
            levels = unpack(kept.packed.reshape(9, -1), kept.bits, blocks * kept.block).astype(np.float32)
            if kept.zero_points is None:
                zeros = np.full((9, blocks), 2.0 ** (kept.bits - 1))
            elif kept.zero_points.dtype == np.uint8:
                zeros = unpack(kept.zero_points.astype(np.uint8), kept.bits, blocks).astype(np.float64)
            else:
                zeros = kept.zero_points.astype(np.float64)
            real = (levels - np.repeat(zeros, kept.block, axis=1)) * np.repeat(kept.scales, kept.block, axis=1)
            np.testing.assert_allclose(real[:, :channels].T, found.dequantized(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- graph


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_the_exported_graph_of_every_preset(backend: OnnxRuntimeBackend, preset: Any) -> None:
    space = space_of(backend)
    by_name = {candidate.label: candidate.config for candidate in preset_stage(space, SAMPLES).candidates}
    config = by_name[preset.name]
    assert config.needs_calibration == (preset.algorithm != "RTN")
    proto = exported(backend, config)
    nodes = nbits_nodes(proto)
    matmuls = [op.name for op in space.ops if op.op_type == "MatMul"]
    expected = [op.name for op in space.ops if not (preset.disable_last_matmul and op.name == matmuls[-1])]
    assert list(nodes) == expected
    sizes = {"first": (48, 96), "second": (96, 48)}
    for name, (channels, outputs) in sizes.items():
        attributes = nodes[name]
        assert (attributes["K"], attributes["N"], attributes["bits"], attributes["inputs"]) == (channels, outputs, 4, 4)
        assert attributes["block_size"] == 32 or preset.group_size == 128
    kinds = {node.name: node.op_type for node in proto.graph.node}
    if preset.disable_last_matmul:
        assert kinds[matmuls[-1]] == "MatMul"
    scaled = {name for name in kinds if name.endswith("_scale")}
    assert bool(scaled) == (preset.algorithm == "AWQ")
    names = {tensor.name for tensor in proto.graph.initializer}
    assert not names & {"w1", "w2"}  # the fp32 weights are gone
    if not preset.disable_last_matmul:
        assert len(proto.SerializeToString()) < 0.35 * backend.facts().size_bytes
    fp32, quantized = backend.load(None), backend.load(config)
    for expected_output, actual in zip(fp32.predict(feeds(1)[0]), quantized.predict(feeds(1)[0]), strict=True):
        assert expected_output.shape == actual.shape
        assert np.square(expected_output - actual).mean() < 0.05 * np.square(expected_output).mean()


def test_a_gemm_keeps_its_bias_and_a_shared_weight_is_quantized_for_each_reader(backend: OnnxRuntimeBackend) -> None:
    proto = exported(backend, everywhere(backend, int_weight("RTN", 8, 16, "sym")))
    index = GraphIndex(proto)
    follower = index.only_consumer(index.nodes["gemm"].output[0])
    assert follower is not None
    assert (follower.op_type, follower.output[0]) == ("Add", "z")
    assert "pooled" in nbits_nodes(proto)


def test_what_falls_back_is_the_fp32_op_again(backend: OnnxRuntimeBackend) -> None:
    config = everywhere(backend, int_weight("GPTQ"))
    proto = exported(backend, config.with_ops({"second": FP32}))
    index = GraphIndex(proto)
    assert index.nodes["second"].op_type == "MatMul"
    np.testing.assert_array_equal(
        numpy_helper.to_array(index.initializers[index.nodes["second"].input[1]]),
        numpy_helper.to_array(GraphIndex(network()).initializers["w2"]),
    )
    nothing = exported(backend, config.with_ops({name: FP32 for name, _ in config.ops}))
    assert all(entry.domain in ("", "ai.onnx") for entry in nothing.opset_import)


def test_layers_may_differ_in_bits_group_and_algorithm(backend: OnnxRuntimeBackend) -> None:
    config = everywhere(backend, int_weight("RTN", 4, 32)).with_ops(
        {
            "second": OpConfig("weight_only", None, int_weight("GPTQ", 8, 16)),
            "head": OpConfig("weight_only", None, int_weight("AWQ", 2, 16)),
        }
    )
    nodes = nbits_nodes(exported(backend, replace(config, sampling_size=SAMPLES)))
    assert [nodes[name]["bits"] for name in ("first", "second", "head")] == [4, 8, 2]
    assert [nodes[name]["block_size"] for name in ("first", "second", "head")] == [32, 16, 16]


def test_the_accuracy_level_is_an_attribute(backend: OnnxRuntimeBackend) -> None:
    config = everywhere(backend, int_weight(), accuracy_level=4)
    assert {node["accuracy_level"] for node in nbits_nodes(exported(backend, config)).values()} == {4}
    plain = nbits_nodes(exported(backend, everywhere(backend, int_weight())))
    assert all("accuracy_level" not in node for node in plain.values())


def test_only_level_4_counts_as_computing_on_integers(backend: OnnxRuntimeBackend) -> None:
    ops = {op.name for op in backend.facts().capability.ops}
    widened, rounded = (backend.load(everywhere(backend, int_weight(), accuracy_level=level)) for level in (0, 4))
    assert (widened.ops_executed_int8, set(widened.reasons)) == (0, ops)
    assert "accuracy_level" in widened.reasons["first"]
    assert (rounded.ops_executed_int8, dict(rounded.reasons)) == (len(ops), {})


def test_widths_without_a_kernel_are_stored_only_if_asked_for_and_labelled(backend: OnnxRuntimeBackend) -> None:
    three = int_weight("GPTQ", 3)
    with pytest.raises(TrialError, match="does not run 3 bits"):
        backend.load(everywhere(backend, three))
    asking = make({"weight_only_storage": "wider"})
    assert 3 in {option.weight.bits for option in asking.facts().capability.ops[0].options if option.weight}
    wider = backend.load(everywhere(backend, three, weight_only_storage="wider"))
    kept = backend.load(everywhere(backend, three, weight_only_storage="dequantized"))
    assert "3-bit weights stored in wider integers: first" in wider.warnings[0]
    assert "3-bit weights stored dequantized" in kept.warnings[0]
    assert {node["bits"] for node in nbits_nodes(wider.native).values()} == {4}
    assert not nbits_nodes(kept.native)
    assert kept.ops_executed_int8 == 0
    for one, other in zip(wider.predict(feeds(1)[0]), kept.predict(feeds(1)[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- calibration


def test_any_sharding_gives_the_same_statistics_and_the_same_model(backend: OnnxRuntimeBackend) -> None:
    numbered = list(enumerate(feeds(6)))
    whole = merge([backend.calibrate((), numbered)])
    config = everywhere(backend, int_weight("GPTQ"))
    models = set()
    for shards in (1, 2, 3):
        merged = merge([backend.calibrate((), numbered[shard::shards]) for shard in range(shards)])
        assert merged == whole
        worker = make()
        worker.set_statistics((), SAMPLES, merged)
        models.add(worker.export(config).files["model.onnx"])
    assert len(models) == 1


def test_a_saved_config_is_applied_again_without_data(backend: OnnxRuntimeBackend) -> None:
    plain = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", live=network())))
    for algorithm in ("RTN", "GPTQ", "AWQ", "HQQ"):
        config = everywhere(backend, int_weight(algorithm), accuracy_level=4)
        made = backend.export(config)
        assert plain.apply(made.deploy, config).files == made.files
        assert ("weights" in made.deploy) == (algorithm in ("GPTQ", "AWQ"))


def test_settings_of_the_algorithms_reach_the_weights(backend: OnnxRuntimeBackend) -> None:
    for algorithm, recipe, value in (
        ("RTN", "rtn_args", {"enable_mse_search": True}),
        ("GPTQ", "gptq_args", {"actorder": False}),
        ("AWQ", "awq_args", {"enable_auto_scale": False}),
    ):
        plain = everywhere(backend, int_weight(algorithm))
        changed = everywhere(backend, int_weight(algorithm), **{recipe: value})
        assert backend.export(plain).files != backend.export(changed).files
