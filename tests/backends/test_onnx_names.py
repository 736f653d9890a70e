"""Names that are made up for a quantized graph are never those that the user's model has for something else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
from distune.backends.onnxruntime.graph import UnusedNames, names_in
from distune.config.job import Constraint, ModelSpec, TuningJob
from distune.space.op_config import FP32, TuningConfig
from tests.backends.onnx_models import SAMPLES, Feeds, attention_model, convolution_model, images, sentences
from tests.backends.recipes.common import linear_model, rows


def test_an_unused_name_is_given_once_and_to_nothing_that_is_there() -> None:
    proto = convolution_model()
    inner = helper.make_graph([helper.make_node("Identity", ["c1"], ["inside"], "id")], "inner", [], [])
    proto.graph.node.append(helper.make_node("If", ["x"], ["z"], "branch", then_branch=inner, else_branch=inner))
    unused = UnusedNames(proto)
    taken = ["x", "w1", "c1", "conv1", "inside", "id"]
    assert [unused(name) for name in (*taken, "new", "new")] == [*(f"{name}_" for name in taken), "new", "new_"]


def judged(
    proto: onnx.ModelProto, feeds: Feeds, mode: str, form: str, recipes: Mapping[str, Any], fp32: Collection[str]
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A model in a mode, and what it gives for the first batch."""
    job = TuningJob(
        ModelSpec("onnxruntime", live=proto, quant_format=form),
        approach="weight_only" if mode == "weight_only" else "static",
        constraints=(Constraint("model", weight={"dtype": ("int8", "fp16", "fp32")}),) if mode == "fp16" else (),
        recipes={name: value for name, value in recipes.items() if name == "gemm_to_matmul"},
    )
    backend = OnnxRuntimeBackend(job)
    ops = backend.facts().capability.ops
    chosen = {op.name: [option for option in op.options if option.mode == mode] for op in ops}
    config = TuningConfig(
        tuple((name, options[0] if options and name not in fp32 else FP32) for name, options in chosen.items()),
        sampling_size=SAMPLES,
        recipes=tuple(sorted(recipes.items())),
    )
    for variant in ((), backend.variant(config)) if mode == "static" else ():
        backend.prepare_calibration(SAMPLES)
        backend.set_statistics(variant, SAMPLES, backend.calibrate(variant, enumerate(feeds)))
    loaded = backend.load(config)
    return loaded.native, loaded.predict(feeds[0])


_RESERVED = "uantizeLinear"
"""ONNX Runtime makes up names with it for integers and their nodes. Fp32 models that have any are not looked for."""

CASES: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "static": ("static", "QDQ", {}, ()),
    "QOperator": ("static", "QOperator", {}, ()),
    "partly fp32": ("static", "QDQ", {}, ("conv2", "query", "two")),
    "gemm_to_matmul": ("static", "QDQ", {"gemm_to_matmul": True}, ()),
    "smooth_quant": ("static", "QDQ", {"smooth_quant": 0.5, "smooth_quant_args": '{"folding": false}'}, ()),
    "add_qdq_pair_to_weight": ("static", "QDQ", {"add_qdq_pair_to_weight": True}, ()),
    "dynamic": ("dynamic", "QDQ", {}, ()),
    "fp16": ("fp16", "QDQ", {}, ("conv3", "value", "two")),
    "weight_only": ("weight_only", "QDQ", {}, ()),
}
MODELS = {
    "convolutions": (convolution_model, images),
    "attention": (attention_model, sentences),
    "linear": (linear_model, rows),
}


WITHOUT_GEMM = {"attention", "linear"}


@pytest.mark.parametrize(
    ("model", "case"),
    [(model, case) for model in MODELS for case in CASES if model not in WITHOUT_GEMM or case != "gemm_to_matmul"],
)
def test_a_model_may_have_every_name_that_is_made_up(model: str, case: str) -> None:
    make, feeds = MODELS[model]
    proto = make()
    made, outputs = judged(proto, feeds(), *CASES[case])
    names = sorted(name for name in set(names_in(made.graph)) - set(names_in(proto.graph)) if _RESERVED not in name)

    named = make()
    number = proto.graph.input[0].name
    sums = [helper.make_node("Cast", [number], ["as_float"], "to_float", to=onnx.TensorProto.FLOAT)]
    sums.append(helper.make_node("Sum", ["as_float", *names], ["sum"], "sum"))
    named.graph.node.extend(sums)
    constants = [numpy_helper.from_array(np.array([i], np.float32), name) for i, name in enumerate(names, 1)]
    named.graph.initializer.extend(constants)
    named.graph.output.append(helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))

    _, again = judged(named, feeds(), *CASES[case])
    np.testing.assert_array_equal(again[0], outputs[0])
    expected = feeds()[0][number] + np.float32(len(names) * (len(names) + 1) / 2)
    np.testing.assert_allclose(again[-1], expected, atol=0.1)
