"""The model that a user hands over: a path, or a live object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distune.backends.base import InputInfo
from distune.config.job import ModelSpec
from distune.config.schema import framework_of
from distune.errors import MissingExtraError, ModelError


def model_spec(model: Any, name: str = "") -> ModelSpec:
    """The fp32 model as the job names it. A live model travels as the bytes of its file.

    Args:
        model: Path of an ONNX or ``.pt2`` file, ``file.py:builder``, ``onnx.ModelProto`` or an object that wraps one in
            ``.model``, or ``torch.nn.Module``.
        name: What the user calls it.

    Raises:
        ModelError: It is none of these, or does not exist.
        MissingExtraError: onnx is not installed.
    """
    if isinstance(model, str | os.PathLike):
        return _of_path(os.fspath(model), name)
    if is_torch_module(model):
        return ModelSpec("pytorch", "", name, quant_format="default", live=model)
    proto = model_proto(model)
    if proto is None:
        raise ModelError(
            f"the model is a {type(model).__name__}; give the path of an ONNX file, an onnx.ModelProto or a "
            "torch.nn.Module"
        )
    try:
        return ModelSpec("onnxruntime", "", name, live=proto.SerializeToString(deterministic=True))
    except ValueError as error:  # protobuf ends at 2 GiB
        raise ModelError(f"the model is too large to be handed over in memory ({error}); give its path") from error


def model_proto(model: Any) -> Any:
    """The ``onnx.ModelProto`` that ``model`` is or wraps in ``.model``, ``None`` where it is neither."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "to handle an ONNX model") from error
    for candidate in (model, getattr(model, "model", None), getattr(model, "native", None)):
        if isinstance(candidate, onnx.ModelProto):
            return candidate
    return None


def _of_path(path: str, name: str) -> ModelSpec:
    framework = framework_of(path)
    if framework == "pytorch" and not path.endswith(".pt2"):
        return ModelSpec("pytorch", path, name, quant_format="default")
    absolute = os.path.abspath(os.path.expanduser(path))
    if Path(absolute).is_dir():
        raise ModelError(f"model {path!r} is a folder; name the model file in it")
    if not Path(absolute).is_file():
        raise ModelError(f"model file {path!r} does not exist (looked for {absolute})")
    if framework == "pytorch":
        return ModelSpec("pytorch", absolute, name, quant_format="default")
    return ModelSpec("onnxruntime", absolute, name)


def is_torch_module(model: object) -> bool:
    """Whether ``model`` is a ``torch.nn.Module``; torch is not imported for it."""
    return any(cls.__module__.startswith("torch.") and cls.__name__ == "Module" for cls in type(model).__mro__)


def any_onnx_model(model: Any) -> Any:
    """The ``onnx.ModelProto`` of a model in any precision: a path, a proto, or the result of a ``fit``.

    Raises:
        ModelError: It is none of these, does not exist, or is a file of another kind.
    """
    if isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        spec = model_spec(path)
        if spec.framework != "onnxruntime":
            raise ModelError(f"model {path!r} is not an ONNX file, and others are not timed by themselves")
        from distune.backends.onnxruntime.model import read_model

        return read_model(spec)
    proto = model_proto(model)
    if proto is None:
        raise ModelError(f"the model is a {type(model).__name__}; give the path of an ONNX file or an onnx.ModelProto")
    return proto


def onnx_inputs(proto: Any) -> tuple[InputInfo, ...]:
    """The inputs that have to be fed."""
    from onnx.helper import tensor_dtype_to_np_dtype

    weights = {tensor.name for tensor in proto.graph.initializer}
    found: list[InputInfo] = []
    for value in proto.graph.input:
        if value.name not in weights:
            tensor = value.type.tensor_type
            shape = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
            found.append(InputInfo(value.name, str(tensor_dtype_to_np_dtype(tensor.elem_type)), shape))
    return tuple(found)
