"""ONNX in QDQ form: the reference graph of a config by ``torch.onnx``, so that it runs in ONNX Runtime as well.

Quantize and dequantize nodes become ``QuantizeLinear`` and ``DequantizeLinear`` with the same scales; weights stay
integers. With graph optimizations off ONNX Runtime gives the numbers of the reference graph; with them on it computes
in integer kernels, where a value between two steps may go to the other one.

Dynamic quantization becomes ``DynamicQuantizeLinear`` for the scale, and a pair of nodes with it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from distune.backends.pytorch.program import quiet
from distune.errors import MissingExtraError, TrialError

if TYPE_CHECKING:
    import onnx

_BATCH = "batch"


def archive_to_onnx(archive: bytes) -> bytes:
    """The ONNX model of a ``.pt2`` archive.

    Raises:
        MissingExtraError, TrialError: See ``to_onnx``.
    """
    with quiet():
        program = torch.export.load(io.BytesIO(archive))
    outputs = len(program.graph_signature.user_outputs)
    names = ["output"] if outputs == 1 else [f"output_{index}" for index in range(outputs)]
    return to_onnx(program, [str(name) for name in program.graph_signature.user_inputs], names)


def to_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The ONNX model of a program.

    Args:
        program: Of a reference graph (``program.program_of``).
        inputs, outputs: What the model's are called.

    Raises:
        MissingExtraError: onnxscript is not installed.
        TrialError: An op of the graph has no form in ONNX; says which.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnxscript", "torch", "to write an ONNX model") from error
    try:
        with quiet():
            written = torch.onnx.export(
                program,
                dynamo=True,
                optimize=True,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                custom_translation_table=_translations(),
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:400]
        raise TrialError(f"the model cannot be written as ONNX: {reason}") from error
    assert written is not None  # dynamo=True gives a program
    proto = written.model_proto
    _name_axes(proto)
    del proto.graph.value_info[:]  # torch says [1] of scales that are scalars in ONNX
    content = proto.SerializeToString(deterministic=True)
    assert isinstance(content, bytes)  # protobuf has no types
    return content


def _name_axes(proto: onnx.ModelProto) -> None:
    """Call the dynamic first axis ``batch`` and the others after their place; torch names them ``s77``."""
    names: dict[str, str] = {}
    for value in proto.graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param and size.dim_param not in names:
                new = _BATCH if axis == 0 else f"axis_{axis}"
                names[size.dim_param] = new if new not in names.values() else f"{value.name}_{new}"
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]


def _translations() -> dict[Any, Any]:
    """ONNX of the ops of dynamic quantization, which torch.onnx does not know."""
    from onnx import TensorProto
    from onnxscript import opset20 as op

    def narrow(scale: Any, zero_point: Any) -> tuple[Any, Any]:
        return op.Cast(scale, to=TensorProto.FLOAT), op.Cast(zero_point, to=TensorProto.UINT8)

    def choose_qparams(value: Any, quant_min: int, quant_max: int, eps: float, dtype: int) -> Any:
        _, scale, zero_point = op.DynamicQuantizeLinear(value)
        return op.Cast(scale, to=TensorProto.DOUBLE), op.Cast(zero_point, to=TensorProto.INT64)  # as torch has them

    def quantize(value: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int) -> Any:
        return op.QuantizeLinear(value, *narrow(scale, zero_point))

    def dequantize(
        value: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int, out_dtype: int = -1
    ) -> Any:
        return op.DequantizeLinear(value, *narrow(scale, zero_point))

    decomposed = torch.ops.quantized_decomposed
    return {
        decomposed.choose_qparams.tensor: choose_qparams,
        decomposed.quantize_per_tensor.tensor: quantize,
        decomposed.dequantize_per_tensor.tensor: dequantize,
    }


__all__ = ["archive_to_onnx", "to_onnx"]
