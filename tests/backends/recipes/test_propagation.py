"""Recipes that say where QuantizeLinear and DequantizeLinear stand, looked up in the exported graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from distune.backends.onnxruntime.graph import GraphIndex
from tests.backends.onnx_models import Feeds, convolution_model, images, model
from tests.backends.recipes.common import UnderRecipes, value


def branches() -> onnx.ModelProto:
    """conv and max pool; two convolutions read the pool, one 10 times as large; Concat, conv."""
    rng = np.random.default_rng(3)
    constants = {
        "w0": rng.normal(size=(4, 3, 3, 3)),
        "w1": rng.normal(size=(4, 4, 1, 1)),
        "w2": 10 * rng.normal(size=(4, 4, 1, 1)),
        "w3": rng.normal(size=(4, 8, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "stem"),
        helper.make_node("MaxPool", ["c0"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w1"], ["c1"], "small"),
        helper.make_node("Conv", ["p", "w2"], ["c2"], "large"),
        helper.make_node("Concat", ["c1", "c2"], ["k"], "join", axis=1),
        helper.make_node("Conv", ["k", "w3"], ["y"], "head"),
    ]
    arrays = {name: np.asarray(array, np.float32) for name, array in constants.items()}
    return model(nodes, {"x": ["batch", 3, 12, 12]}, ["y"], arrays)


@pytest.fixture(scope="module")
def made() -> UnderRecipes:
    return UnderRecipes(branches(), images())


def scale_before(graph: GraphIndex, tensor: str) -> float:
    """Scale of the QuantizeLinear that reads a tensor."""
    (node,) = [n for n in graph.consumers[tensor] if n.op_type == "QuantizeLinear"]
    return float(value(graph, node.input[1]))


def test_inputs_of_concat_take_the_scale_of_its_output(made: UnderRecipes) -> None:
    plain, shared = made.graph(), made.graph(scale_propagation_concat=True)
    assert scale_before(plain, "c1") < scale_before(plain, "c2") / 4
    assert scale_before(shared, "c1") == scale_before(shared, "c2") == scale_before(shared, "k")


def test_what_a_relu_behind_the_concat_cuts_off_stays_where_others_read_it() -> None:
    rng = np.random.default_rng(3)
    arrays = {name: rng.normal(size=(4, 3, 1, 1)).astype(np.float32) for name in ("w1", "w2")}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first"),
        helper.make_node("Conv", ["x", "w2"], ["b"], "second"),
        helper.make_node("Concat", ["a", "b"], ["k"], "join", axis=1),
        helper.make_node("Relu", ["k"], ["y"], "relu"),
    ]
    made = UnderRecipes(model(nodes, {"x": ["batch", 3, 12, 12]}, ["y", "a"], arrays), images())
    feed, backend = images()[0], made.backend
    expected = backend.load(None).predict(feed)
    actual = backend.load(made.config(scale_propagation_concat=True)).predict(feed)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())


def test_max_pool_passes_the_scale_on_unless_it_is_told_not_to(made: UnderRecipes) -> None:
    plain, own = made.graph(), made.graph(scale_propagation_max_pooling=False)
    assert scale_before(plain, "p") == scale_before(plain, "c0")
    assert "QuantizeLinear" not in {n.op_type for n in own.consumers["c0"]} or scale_before(own, "p") <= scale_before(
        own, "c0"
    )
    assert own.producer["p"].op_type == "MaxPool"


def test_every_reader_gets_its_own_pair(made: UnderRecipes) -> None:
    plain, dedicated = made.graph(), made.graph(dedicated_qdq_pair=True)
    assert plain.nodes["small"].input[0] == plain.nodes["large"].input[0]
    assert dedicated.nodes["small"].input[0] != dedicated.nodes["large"].input[0]


def test_outputs_of_the_given_types_are_not_quantized(made: UnderRecipes) -> None:
    plain, without = made.graph(), made.graph(optypes_to_exclude_output_quant="Conv")
    assert plain.producer["y"].op_type == "DequantizeLinear"
    assert without.producer["y"].op_type == "Conv"


def test_weights_are_stored_in_fp32_with_a_pair() -> None:
    made = UnderRecipes(convolution_model(), images())
    graph = made.graph(add_qdq_pair_to_weight=True)
    for op, weight in (("conv1", "w1"), ("fc", "wf")):
        quantize = graph.producer[graph.producer[graph.nodes[op].input[1]].input[0]]
        assert quantize.op_type == "QuantizeLinear"
        np.testing.assert_array_equal(value(graph, quantize.input[0]), value(made.backend._model.index, weight))
    plain, paired = (made.backend.load(made.config(**r)) for r in ({}, {"add_qdq_pair_to_weight": True}))
    np.testing.assert_array_equal(plain.predict(images()[0])[0], paired.predict(images()[0])[0])
    assert paired.ops_executed_int8 == plain.ops_executed_int8


def test_weights_that_were_rounded_otherwise_keep_their_integers_in_a_pair() -> None:
    made = UnderRecipes(convolution_model(), images())
    recipes = {"adaround": True}
    plain, paired = (made.backend.load(made.config(**recipes, **r)) for r in ({}, {"add_qdq_pair_to_weight": True}))
    np.testing.assert_array_equal(plain.predict(images()[0])[0], paired.predict(images()[0])[0])


def test_layer_wise_calibration_gives_the_same_statistics() -> None:
    made = UnderRecipes(convolution_model(), images())
    feeds: Feeds = images()
    plain, layer_wise = (
        made.backend.calibrate(variant, enumerate(feeds)) for variant in ((), (("layer_wise_quant", True),))
    )
    assert plain == layer_wise
