"""Loading an ONNX model and refusing, with a reason, what cannot be quantized."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import load_external_data_for_tensor

from distune.backends.onnxruntime.shared import LightModel, adopted, is_light
from distune.config.job import ModelSpec
from distune.errors import ModelError

MIN_OPSET = 13
"""First opset whose QuantizeLinear and DequantizeLinear have an axis, so per-channel weights."""

KNOWN_DOMAINS = frozenset(
    {
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "com.microsoft",
        "com.microsoft.experimental",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
        "org.pytorch.aten",
    }
)
"""Operator domains that ONNX Runtime brings itself."""

QUANTIZED_OPS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm", "ConvInteger"),
        *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
        *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"),
        *("QAttention", "QOrderedAttention", "QEmbedLayerNormalization", "QMoE"),
    }
)
"""Operators whose presence means that the model has been quantized before."""


def load_model(spec: ModelSpec) -> onnx.ModelProto:
    """The checked fp32 model of ``spec``, with a name for every node.

    ``spec.live`` may be a ``ModelProto``, which is copied, or the bytes of a model file; else ``spec.path`` is read,
    external data included.

    Raises:
        ModelError: There is no such file, it is no ONNX model, or it is of a kind that cannot be quantized.
    """
    model = _read(spec)
    _check(model, spec.name or spec.path or "the ONNX model")
    _name_nodes(model)
    return model


def open_model(spec: ModelSpec) -> LightModel:
    """The same with its larger weights in files that the ranks of a node share; external data are never read whole.

    Raises:
        ModelError: As ``load_model``; external data are missing.
    """
    if spec.live is not None:
        return LightModel(load_model(spec), shared=True)
    model = _read(spec, whole=False)
    _check(model, spec.name or spec.path)
    _name_nodes(model)
    with adopted(model, Path(spec.path).parent):
        return LightModel(model, shared=True)


def read_model(spec: ModelSpec) -> onnx.ModelProto:
    """The model of ``spec`` as it is, in any precision.

    Raises:
        ModelError: There is no such file, or it is no ONNX model.
    """
    model = _read(spec)
    _check_nodes(model, spec.name or spec.path or "the ONNX model")
    return model


def _read(spec: ModelSpec, whole: bool = True) -> onnx.ModelProto:
    if isinstance(spec.live, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(spec.live)
        return model
    try:
        if isinstance(spec.live, (bytes, bytearray, memoryview)):
            return onnx.load_model_from_string(bytes(spec.live))
        if spec.live is not None:
            raise ModelError(
                f"the model is a {type(spec.live).__name__}; give a path, an onnx.ModelProto or the bytes of one"
            )
        path = Path(spec.path)
        if not path.is_file():
            raise ModelError(f"model file {spec.path!r} does not exist")
        model = onnx.load(path, load_external_data=whole)
        if not whole:
            for tensor in _inner_tensors(model.graph):
                if is_light(tensor):
                    load_external_data_for_tensor(tensor, str(path.parent))
                    tensor.data_location = onnx.TensorProto.DEFAULT
                    del tensor.external_data[:]
        return model
    except DecodeError as error:
        raise ModelError(f"{spec.path or 'the model'} is not an ONNX model file: {error}") from error
    except (onnx.checker.ValidationError, OSError) as error:
        raise ModelError(f"{spec.path or 'the model'} cannot be read, or its external data cannot: {error}") from error


def _inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The constants in attributes of nodes, and those of inner graphs."""
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from inner.initializer
                yield from _inner_tensors(inner)


def _check_nodes(model: onnx.ModelProto, where: str) -> None:
    if not model.graph.node:
        raise ModelError(f"{where} has no nodes: it is not an ONNX model, or an empty one")


def _check(model: onnx.ModelProto, where: str) -> None:
    _check_nodes(model, where)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    opset = opsets.get("ai.onnx", MIN_OPSET)
    if opset < MIN_OPSET:
        raise ModelError(
            f"{where} has opset {opset}; quantization needs {MIN_OPSET} or newer. Convert it: onnx.save("
            "onnx.version_converter.convert_version(onnx.load('model.onnx'), 17), 'model17.onnx'), or export it again"
        )
    nodes = list(_all_nodes(model))
    done = sorted({node.op_type for node in nodes if node.op_type in QUANTIZED_OPS})
    if done:
        raise ModelError(f"{where} is quantized already (it contains {', '.join(done)}); give the fp32 model")
    for values, side, why in (
        (model.graph.input, "input", "calibrated and fed"),
        (model.graph.output, "output", "compared and scored"),
    ):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in ("tensor_type", None) or (side == "input" and kind is None):
                shown = str(kind or "untyped value").removesuffix("_type")
                raise ModelError(
                    f"{where}: {side} {value.name!r} is no tensor but a {shown}; only tensors can be {why}. "
                    f"Export the model with one tensor an {side}"
                )
    local = {(function.domain, function.name) for function in model.functions}
    unknown = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in nodes
            if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in local
        }
    )
    if unknown:
        raise ModelError(
            f"{where} uses operators that ONNX Runtime does not bring: {', '.join(unknown)}; "
            "export the model without them (custom operator libraries are not supported)"
        )


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of the graph, of the graphs inside it, and of the model's own functions."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                pending.extend(inner.node)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give unnamed nodes, and later ones of the same name, the name ``<op_type>_<index>``."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)
