"""Models that run from a cut, on tensors that their base left there, give the same bits as when they run as a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from distune.backends.base import Feed
from distune.backends.node_folder import shared_folder
from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.cuts import Cut, computed_alike, find_cuts, spread, worth_most
from distune.backends.onnxruntime.prefix import SharedPrefix, Suffix
from distune.space.op_config import FP32, TuningConfig
from tests.backends.onnx_models import backend_of, default_config, model

LIMIT = 1 << 24


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def residual_network(seed: int, blocks: int = 4) -> onnx.ModelProto:
    """Convolutions with an activation each, a residual addition around some, and a classifier."""
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def convolution(tensor: str, name: str, channels: int, group: int = 1) -> str:
        constants[f"{name}_w"] = rng.normal(size=(8, channels // group, 3, 3)).astype(np.float32) / 4
        constants[f"{name}_b"] = rng.normal(size=8).astype(np.float32)
        inputs = [tensor, f"{name}_w", f"{name}_b"]
        return add("Conv", inputs, name, pads=[1, 1, 1, 1], kernel_shape=[3, 3], group=group)

    tensor = add("Relu", [convolution("x", "stem", 3)], "stem_relu")
    for block in range(blocks):
        inner = add("Relu", [convolution(tensor, f"b{block}_a", 8, int(rng.choice([1, 8])))], f"b{block}_relu")
        if rng.random() < 0.6:
            inner = add("Add", [tensor, convolution(inner, f"b{block}_b", 8)], f"b{block}_add")
        tensor = add("Relu", [inner], f"b{block}_end")
    constants["head_w"] = rng.normal(size=(8, 5)).astype(np.float32)
    pooled = add("Flatten", [add("GlobalAveragePool", [tensor], "pool")], "flatten")
    nodes.append(helper.make_node("Gemm", [pooled, "head_w"], ["y"], "head"))
    return model(nodes, {"x": ["batch", 3, 8, 8]}, ["y"], constants)


def batches(seed: int, count: int = 4, size: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(size, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def one_at_a_time(backend: OnnxRuntimeBackend, base: TuningConfig) -> list[TuningConfig]:
    """``base`` with each group of ops in fp32 alone, the last group first."""
    groups = list(dict.fromkeys(op.group for op in backend.facts().capability.ops))
    members = {g: [op.name for op in backend.facts().capability.ops if op.group == g] for g in groups}
    return [base.with_ops(dict.fromkeys(members[group], FP32)) for group in reversed(groups)]


@pytest.mark.parametrize("seed", range(4))
def test_running_from_a_cut_changes_no_bit(seed: int) -> None:
    backend = backend_of(residual_network(seed), batches(seed + 100, size=4))
    base, feeds = default_config(backend), batches(seed)
    candidates = one_at_a_time(backend, base)
    whole = [[backend.load(config).predict(feed)[0].tobytes() for feed in feeds] for config in candidates]
    backend.share(base, samples=48, memory_limit=LIMIT)
    cuts = []
    for config, expected in zip(candidates, whole, strict=True):
        loaded = backend.load(config)
        assert [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)] == expected
        assert loaded._suffix is not None
        cuts.append(loaded._suffix.cut)
    assert sum(cut is not None for cut in cuts) >= len(cuts) // 3
    places = [cut.ops_before for cut in cuts if cut is not None]
    assert places == sorted(places, reverse=True), "the earlier the op, the earlier the cut"
    assert cuts[-1] is None, "nothing comes before the first op"


@pytest.mark.parametrize("limit", [1, 20_000])
def test_what_there_is_no_room_for_runs_as_a_whole(limit: int) -> None:
    backend = backend_of(residual_network(1), batches(101, size=4))
    base, feeds = default_config(backend), batches(1)
    candidate = one_at_a_time(backend, base)[2]
    expected = [backend.load(candidate).predict(feed)[0].tobytes() for feed in feeds]
    backend.share(base, samples=12, memory_limit=limit)
    loaded = backend.load(candidate)
    assert [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)] == expected
    assert backend._shared is not None
    assert backend._shared._store is not None
    assert backend._shared._store.size <= limit


def test_configs_that_differ_in_more_than_ops_share_nothing() -> None:
    backend = backend_of(residual_network(1), batches(101, size=4))
    base = default_config(backend)
    backend.share(base, samples=48, memory_limit=LIMIT)
    first = one_at_a_time(backend, base)[0]
    assert backend.load(base)._suffix is None
    assert backend.load(first.with_recipes({"first_conv_or_matmul_quantization": False}))._suffix is None
    assert backend.load(first)._suffix is not None
    backend.share(None)
    assert backend.load(first)._suffix is None


def test_a_model_that_outlives_its_stage_holds_nothing_and_runs_as_a_whole() -> None:
    backend = backend_of(residual_network(1), batches(101, size=4))
    base, feeds = default_config(backend), batches(1)
    backend.share(base, samples=48, memory_limit=LIMIT)
    loaded = backend.load(one_at_a_time(backend, base)[0])
    before = [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)]
    shared = backend._shared
    assert shared is not None
    assert shared_folder().exists()
    backend.share(None)
    assert not shared_folder().exists()
    assert [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)] == before
    assert not shared_folder().exists()


class _Wrong(SharedPrefix):
    """Keeps tensors that are off by one in one element."""

    def tensor(self, key: Hashable, feed: Feed, cut: Cut) -> NDArray[Any] | None:
        found = super().tensor(key, feed, cut)
        if found is None:
            return None
        out = found.copy()
        out.reshape(-1)[0] ^= 64
        return out


def test_a_cut_from_where_the_numbers_differ_is_not_used() -> None:
    backend = backend_of(residual_network(2), batches(102, size=4))
    base, feeds = default_config(backend), batches(2)
    candidate = one_at_a_time(backend, base)[0]
    proto = backend._proto(candidate)
    shared = _Wrong(backend._proto(base), 1, 48, LIMIT)
    suffix = Suffix(shared, proto)
    whole = backend.load(candidate)
    assert suffix.predict(0, feeds[0], whole.predict)[0].tobytes() == whole.predict(feeds[0])[0].tobytes()
    assert suffix.cut is None
    kept = {cut.tensor for cut in shared.cuts}
    assert (
        Suffix(shared, proto).predict(0, feeds[0], whole.predict)[0].tobytes() == whole.predict(feeds[0])[0].tobytes()
    )
    assert {cut.tensor for cut in shared.cuts} < kept


def test_cuts_are_where_everything_passes_through_one_tensor() -> None:
    backend = backend_of(residual_network(0), batches(100, size=4))
    proto = backend._proto(default_config(backend))
    found = find_cuts(proto)
    assert found
    producers = {name: node for node in proto.graph.node for name in node.output}
    for cut in found:
        assert producers[cut.tensor].op_type == "QuantizeLinear"
        reached, pending = set(), [output.name for output in proto.graph.output]
        while pending:  # from the outputs back, without passing the cut
            name = pending.pop()
            if name != cut.tensor and name not in reached:
                reached.add(name)
                pending += producers[name].input if name in producers else []
        assert "x" not in reached
    assert not find_cuts(backend._user_model), "fp32 has none"


def test_a_tensor_is_alike_where_all_that_it_is_made_of_is() -> None:
    backend = backend_of(residual_network(3), batches(103, size=4))
    base = default_config(backend)
    proto = backend._proto(base)
    names = [cut.tensor for cut in find_cuts(proto)]
    assert computed_alike(proto, backend._proto(base), names) == set(names)
    assert not computed_alike(proto, backend._proto(base.with_ops({"stem": FP32, "stem_relu": FP32})), names)
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "stem_w_quantized")
    weight.raw_data = bytes(len(weight.raw_data))
    assert not computed_alike(proto, other, names)


def test_memory_goes_to_the_cuts_that_save_most() -> None:
    cuts = [Cut(f"t{place}", 2, place) for place in (1, 2, 4, 8)]
    costs = {"t1": 7.0, "t2": 5.5, "t4": 3.0, "t8": 0.0}
    sizes = dict.fromkeys(costs, 10)
    assert worth_most(cuts, sizes, costs, 10.0, 1000) == cuts
    assert worth_most(cuts, sizes, costs, 10.0, 9) == []
    assert [cut.tensor for cut in worth_most(cuts, sizes, costs, 10.0, 10)] == ["t4"]
    assert worth_most(cuts, sizes, dict.fromkeys(costs, 10.0), 10.0, 1000) == [], "nothing is saved"
    little = worth_most(cuts, sizes, {**costs, "t2": 6.0}, 10.0, 1000)
    assert [cut.tensor for cut in little] == ["t1", "t4", "t8"], "two models save a tenth each: less than writing costs"
    assert [cut.ops_before for cut in spread(cuts, 2)] == [1, 4]
    assert [cut.tensor for cut in spread([Cut("a", 2, 1), Cut("b", 2, 1)], 5)] == ["b"]


def _sized_batches(sizes: list[int], rows: int = 9) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(size=(rows, 3, size, size)).astype(np.float32)} for size in sizes]


def _any_size(seed: int) -> onnx.ModelProto:
    """``residual_network`` for images of any height and width."""
    proto = residual_network(seed)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_param, dims[3].dim_param = "height", "width"
    return proto


def _never(feed: Feed) -> list[NDArray[Any]]:
    raise AssertionError("ran as a whole")


def test_batches_of_images_of_another_size_run_from_the_cut_too() -> None:
    backend = backend_of(_any_size(1), _sized_batches([8, 12], rows=4))
    base, feeds = default_config(backend), _sized_batches([12, 8, 16, 12])
    candidate = one_at_a_time(backend, base)[2]
    whole = backend.load(candidate)
    suffix = Suffix(SharedPrefix(backend._proto(base), 1, 36, LIMIT), backend._proto(candidate))
    for key, feed in enumerate(feeds):
        outputs = suffix.predict(key, feed, whole.predict if key == 0 else _never)
        assert suffix.cut is not None
        assert outputs[0].tobytes() == whole.predict(feed)[0].tobytes()


def test_batches_of_another_size_run_as_a_whole_where_not_even_the_rank_is_known() -> None:
    proto = _any_size(1)
    proto.graph.node.insert(0, helper.make_node("Reshape", ["x", "sizes"], ["reshaped"], "reshape"))
    proto.graph.node[1].input[0] = "reshaped"
    proto.graph.input.append(helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [None]))
    del proto.graph.input[0].type.tensor_type.shape.dim[:]
    proto.graph.input[0].type.tensor_type.ClearField("shape")

    def feeds_of(sizes: list[int]) -> list[dict[str, np.ndarray]]:
        return [{**feed, "sizes": np.array(feed["x"].shape)} for feed in _sized_batches(sizes)]

    backend = backend_of(proto, feeds_of([8, 12]))
    base, feeds = default_config(backend), feeds_of([12, 8, 12])
    candidate = one_at_a_time(backend, base)[2]
    whole = backend.load(candidate)
    suffix = Suffix(SharedPrefix(backend._proto(base), 1, 27, LIMIT), backend._proto(candidate))
    for key, feed in enumerate(feeds):
        outputs = suffix.predict(key, feed, _never if key == 2 else whole.predict)
        assert suffix.cut is not None
        assert outputs[0].tobytes() == whole.predict(feed)[0].tobytes()


def test_a_batch_without_rows_proves_nothing() -> None:
    backend = backend_of(residual_network(1), batches(101, size=4))
    base, feeds = default_config(backend), batches(1, count=1)
    backend.share(base, samples=12, memory_limit=LIMIT)
    loaded = backend.load(one_at_a_time(backend, base)[0])
    assert loaded.predict_batch(0, {"x": feeds[0]["x"][:0]})[0].shape == (0, 5)
    loaded.predict_batch(1, feeds[0])
    assert loaded._suffix is not None
    assert loaded._suffix.cut is not None


def test_a_first_batch_without_rows_shares_nothing() -> None:
    backend = backend_of(residual_network(1), batches(101, size=4))
    shared = SharedPrefix(backend._proto(default_config(backend)), 1, 12, LIMIT)
    shared.fill([(0, {"x": batches(1)[0]["x"][:0]})])
    assert not shared.cuts


def test_a_scalar_among_the_inputs_is_no_batch() -> None:
    proto = residual_network(1)
    proto.graph.node.insert(0, helper.make_node("Mul", ["x", "contrast"], ["contrasted"], "scale"))
    proto.graph.node[1].input[0] = "contrasted"
    proto.graph.input.insert(0, helper.make_tensor_value_info("contrast", onnx.TensorProto.FLOAT, []))

    def scaled(feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        return [{"contrast": np.array(1.5, np.float32), **feed} for feed in feeds]

    backend = backend_of(proto, scaled(batches(101, size=4)))
    base, feeds = default_config(backend), scaled(batches(1))
    candidate = one_at_a_time(backend, base)[0]
    expected = [backend.load(candidate).predict(feed)[0].tobytes() for feed in feeds]
    backend.share(base, samples=48, memory_limit=LIMIT)
    loaded = backend.load(candidate)
    assert [loaded.predict_batch(key, feed)[0].tobytes() for key, feed in enumerate(feeds)] == expected
    assert loaded._suffix is not None
    assert loaded._suffix.cut is not None
