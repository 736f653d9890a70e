"""Loading an ONNX model and refusing, with a reason, what cannot be quantized."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from distune.backends.onnxruntime.shared import LightModel, adopted
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
        "QuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulNBits",
        "QAttention",
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
        return onnx.load(path, load_external_data=whole)
    except DecodeError as error:
        raise ModelError(f"{spec.path or 'the model'} is not an ONNX model file: {error}") from error
    except (onnx.checker.ValidationError, OSError) as error:
        raise ModelError(f"{spec.path or 'the model'} cannot be read, or its external data cannot: {error}") from error


def _check(model: onnx.ModelProto, where: str) -> None:
    if not model.graph.node:
        raise ModelError(f"{where} has no nodes: it is not an ONNX model, or an empty one")
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    opset = opsets.get("ai.onnx", MIN_OPSET)
    if opset < MIN_OPSET:
        raise ModelError(
            f"{where} has opset {opset}; quantization needs {MIN_OPSET} or newer. Convert it: onnx.save("
            "onnx.version_converter.convert_version(onnx.load('model.onnx'), 17), 'model17.onnx'), or export it again"
        )
    done = sorted({node.op_type for node in model.graph.node if node.op_type in QUANTIZED_OPS})
    if done:
        raise ModelError(f"{where} is quantized already (it contains {', '.join(done)}); give the fp32 model")
    strange = [value.name for value in model.graph.input if value.type.WhichOneof("value") != "tensor_type"]
    if strange:
        raise ModelError(
            f"{where}: input {strange[0]!r} is no tensor but a {_kind(model, strange[0])}; only tensors can be "
            "calibrated and fed. Export the model with one tensor an input"
        )
    local = {(function.domain, function.name) for function in model.functions}
    unknown = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in model.graph.node
            if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in local
        }
    )
    if unknown:
        raise ModelError(
            f"{where} uses operators that ONNX Runtime does not bring: {', '.join(unknown)}; "
            "export the model without them (custom operator libraries are not supported)"
        )


def _kind(model: onnx.ModelProto, name: str) -> str:
    kind = next(value for value in model.graph.input if value.name == name).type.WhichOneof("value") or "untyped value"
    return str(kind).removesuffix("_type")


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
