"""Models that cannot be quantized are refused with the way out; the others keep the names of their nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from distune.backends.onnxruntime.model import load_model, open_model
from distune.backends.onnxruntime.preprocess import prepare
from distune.backends.onnxruntime.session import create_session
from distune.config.job import ModelSpec
from distune.errors import ModelError
from tests.backends.onnx_models import backend_of, convolution_model, default_config, images, model


def spec(live: object = None, path: str = "") -> ModelSpec:
    return ModelSpec("onnxruntime", path=path, live=live)


def test_a_path_bytes_and_a_live_model_are_the_same(tmp_path: Path) -> None:
    proto = convolution_model()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    assert load_model(spec(path=str(path))) == load_model(spec(proto)) == load_model(spec(path.read_bytes()))


def test_a_live_model_is_not_changed() -> None:
    proto = convolution_model()
    proto.graph.node[0].name = ""
    before = proto.SerializeToString()
    load_model(spec(proto))
    assert proto.SerializeToString() == before


def test_nodes_without_a_name_get_one() -> None:
    proto = convolution_model()
    for node in proto.graph.node:
        node.name = ""
    proto.graph.node[1].name = "twice"
    proto.graph.node[3].name = "twice"
    names = [node.name for node in load_model(spec(proto)).graph.node]
    assert names[:4] == ["Conv_0", "twice", "Conv_2", "Relu_3"]


def old_opset() -> onnx.ModelProto:
    proto = convolution_model()
    proto.opset_import[0].version = 11
    return proto


def with_node(node: onnx.NodeProto) -> onnx.ModelProto:
    proto = convolution_model()
    proto.graph.node.append(node)
    return proto


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (old_opset(), "opset 11.*convert_version"),
        (with_node(helper.make_node("QuantizeLinear", ["y", "s"], ["q"], "q")), "quantized already.*QuantizeLinear"),
        (with_node(helper.make_node("Odd", ["y"], ["q"], "q", domain="my.ops")), "my.ops.Odd"),
        (with_node(helper.make_node("Relu", ["nowhere"], ["q"], "q")), "ONNX Runtime cannot load the model.*nowhere"),
        (onnx.ModelProto(), "no nodes"),
        (b"not a model", "not an ONNX model|no nodes"),
        (42, "is a int"),
    ],
    ids=["opset", "quantized", "domain", "broken graph", "empty", "bytes", "type"],
)
def test_what_cannot_be_quantized_is_refused_with_the_reason(proto: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        prepare(load_model(spec(proto)))


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(spec(path=str(tmp_path / "none.onnx")))
    path = tmp_path / "text.onnx"
    path.write_text("this is no model at all")
    with pytest.raises(ModelError, match="not an ONNX model"):
        load_model(spec(path=str(path)))


def test_batch_normalization_is_folded_and_names_stay_the_users() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "the conv"),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], "the norm"),
        helper.make_node("Relu", ["n"], ["y"], "the relu"),
    ]
    constants = {"w": rng.normal(size=(4, 3, 1, 1))}
    constants |= {name: rng.uniform(0.5, 2, size=4) for name in "gbmv"}
    constants = {name: value.astype(np.float32) for name, value in constants.items()}
    proto = model(nodes, {"x": ["n", 3, 12, 12]}, ["y"], constants)
    prepared = prepare(load_model(spec(proto)))
    assert [(node.op_type, node.name) for node in prepared.proto.graph.node] == [
        ("Conv", "the conv"),
        ("Relu", "the relu"),
    ]
    feed = images()[0]
    expected = create_session(proto.SerializeToString()).run(None, feed)[0]
    actual = create_session(prepared.proto.SerializeToString()).run(None, feed)[0]
    np.testing.assert_allclose(expected, actual, rtol=1e-5, atol=1e-5)


def test_a_fused_matmul_keeps_its_name() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["y"], "bias"),
    ]
    constants = {"w": rng.normal(size=(12, 4)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    feeds = [{"x": rng.normal(size=(4, 12)).astype(np.float32)} for _ in range(3)]
    backend = backend_of(model(nodes, {"x": ["n", 12]}, ["y"], constants), feeds)
    assert [op.name for op in backend.facts().capability.ops if op.has_weight] == ["product"]
    assert backend.load(default_config(backend)).ops_executed_int8 == 1


def test_preparation_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    prepare(load_model(spec(convolution_model())))
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_a_sequence_is_refused_by_name() -> None:
    proto = convolution_model()
    element = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    sequence = onnx.helper.make_value_info("frames", onnx.helper.make_sequence_type_proto(element))
    proto.graph.input.append(sequence)
    with pytest.raises(ModelError, match="input 'frames' is no tensor but a sequence"):
        load_model(ModelSpec("onnxruntime", live=proto))


def test_an_output_that_is_a_sequence_is_refused_by_name() -> None:
    proto = convolution_model()
    proto.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["frames"], "frames"))
    element = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    proto.graph.output.append(helper.make_value_info("frames", helper.make_sequence_type_proto(element)))
    with pytest.raises(ModelError, match="output 'frames' is no tensor but a sequence"):
        load_model(spec(proto))


def test_an_input_that_is_a_dict_is_refused_by_name() -> None:
    proto = convolution_model()
    entry = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    proto.graph.input.append(helper.make_value_info("features", entry))
    with pytest.raises(ModelError, match=r"input .features. is no tensor but a map.*one tensor an input"):
        load_model(spec(proto))


@pytest.mark.parametrize("op_type", ["QLinearConv", "MatMulInteger", "MatMulNBits", "DynamicQuantizeLSTM"])
def test_every_way_of_being_quantized_already_is_told(op_type: str) -> None:
    domain = "com.microsoft" if op_type in ("MatMulNBits", "DynamicQuantizeLSTM") else ""
    with pytest.raises(ModelError, match=f"quantized already .*{op_type}.*fp32 model"):
        load_model(spec(with_node(helper.make_node(op_type, ["y"], ["q"], "q", domain=domain))))


def test_a_quantized_op_inside_a_branch_is_found_too() -> None:
    inner = helper.make_graph([helper.make_node("QuantizeLinear", ["y", "s"], ["b"], "deep")], "branch", [], [])
    with pytest.raises(ModelError, match=r"quantized already .*QuantizeLinear"):
        load_model(spec(with_node(helper.make_node("If", ["c"], ["b"], "if", then_branch=inner, else_branch=inner))))


def test_an_op_of_a_strange_domain_inside_a_branch_is_named() -> None:
    inner = helper.make_graph([helper.make_node("Odd", ["y"], ["b"], "deep", domain="my.ops")], "branch", [], [])
    with pytest.raises(ModelError, match=r"my\.ops\.Odd.*custom operator"):
        load_model(spec(with_node(helper.make_node("If", ["c"], ["b"], "if", then_branch=inner, else_branch=inner))))


def test_constants_of_nodes_and_branches_may_be_external_too(tmp_path: Path) -> None:
    constants = {name: np.full((16, 16), number, np.float32) for number, name in enumerate(("w", "k", "b"), 1)}
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "b"], ["o"], "add")],
        "branch",
        [],
        [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(constants["b"], "b")],
    )
    nodes = [
        helper.make_node("If", ["c"], ["i"], "if", then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["k"], "k", value=onnx.numpy_helper.from_array(constants["k"], "k")),
        helper.make_node("Add", ["i", "k"], ["s"], "sum"),
        helper.make_node("MatMul", ["s", "w"], ["y"], "product"),
    ]
    proto = model(nodes, {"x": [16, 16], "c": []}, ["y"], {"w": constants["w"]})
    proto.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    path = tmp_path / "user.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="all", size_threshold=64, convert_attribute=True)
    feed = {"x": np.ones((16, 16), np.float32), "c": np.array(True)}
    found = create_session(open_model(spec(path=str(path))).proto).run(None, feed)[0]
    np.testing.assert_array_equal(found, np.full((16, 16), 16 * (1 + 2 + 3), np.float32))
