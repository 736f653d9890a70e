"""Rounding of constant tensors to 8 bits, and how they enter a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from distune.backends.onnxruntime.graph import tensors_read
from distune.errors import TrialError
from distune.space.op_config import TensorConfig


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers with their scale and zero point; both are scalars per tensor, vectors of the channels per channel."""

    values: NDArray[Any]
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]

    def dequantized(self, axis: int | None) -> NDArray[np.float32]:
        """The real values that the integers stand for; ``axis`` is the channel axis."""
        shape = [1] * self.values.ndim
        if axis is not None and self.scale.ndim:
            shape[axis] = -1
        centred = self.values.astype(np.float32) - self.zero_point.astype(np.float32).reshape(shape)
        return centred * self.scale.reshape(shape)


def quantize_weight(
    values: NDArray[Any], config: TensorConfig, axis: int | None = None, reduce_range: bool = False
) -> QuantizedWeight:
    """Round ``values`` to the nearest integers, ties to even, as ONNX Runtime's quantizer does.

    Args:
        values: Any shape, floating point.
        config: ``int8`` or ``uint8``, ``sym`` (int8 only: zero point 0) or ``asym``.
        axis: Channels that have a scale each; ``None`` for one scale.
        reduce_range: Keep int8 within 7 bits (see ``cpu.needs_reduce_range``).
    """
    lowest, highest = _limits(config, reduce_range)
    low, high = _range(values, axis)
    if config.scheme == "sym":
        scale = _usable(np.maximum(-low, high) / np.float32(highest))
        zero = np.zeros_like(scale)
    else:
        scale = _usable((high - low) / np.float32(highest - lowest))
        zero = np.rint(lowest - low / scale)
    shape = [1] * values.ndim
    if axis is not None:
        shape[axis] = -1
    dtype = np.int8 if config.dtype == "int8" else np.uint8
    integers = np.rint(values.astype(np.float32) / scale.reshape(shape)) + zero.reshape(shape)
    return QuantizedWeight(np.clip(integers, lowest, highest).astype(dtype), scale, zero.astype(dtype))


def add_constant(proto: onnx.ModelProto, name: str, value: NDArray[Any]) -> str:
    """Add an initializer under an unused name; returns the name."""
    proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def drop_unused_constants(proto: onnx.ModelProto) -> None:
    """Remove initializers that nothing reads any more."""
    used = {name for node in proto.graph.node for name in tensors_read(node)}
    used.update(output.name for output in proto.graph.output)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    if len(kept) < len(proto.graph.initializer):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def _limits(config: TensorConfig, reduce_range: bool) -> tuple[int, int]:
    if config.dtype == "uint8" and config.scheme == "asym":
        return 0, 255
    if config.dtype != "int8":
        raise TrialError(f"no 8-bit weights of dtype {config.dtype!r} and scheme {config.scheme!r}")
    if reduce_range:
        return -64, 64
    return (-127, 127) if config.scheme == "sym" else (-128, 127)


def _usable(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales, with 1 where all values are zero."""
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)


def _range(values: NDArray[Any], axis: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value, zero included, per channel of ``axis`` or of the whole."""
    axes = None if axis is None else tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    if not values.size:
        return np.zeros((), np.float32), np.zeros((), np.float32)
    low, high = np.minimum(values.min(axes), 0), np.maximum(values.max(axes), 0)
    return np.asarray(low, np.float32), np.asarray(high, np.float32)
