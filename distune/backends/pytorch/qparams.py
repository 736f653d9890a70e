"""Scales and zero points: of activations from calibrated ranges, of weights from their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distune.space.op_config import TensorConfig

LIMITS: dict[str, tuple[torch.dtype, int, int]] = {
    "int8": (torch.int8, -128, 127),
    "uint8": (torch.uint8, 0, 255),
}
"""Storage and the whole range of each dtype."""

_SMALLEST = float(np.finfo(np.float32).tiny)
_REDUCED_BITS = 7


@dataclass(frozen=True, eq=False)
class QParams:
    """How the values of one tensor are rounded: ``q = clip(round(x / scale) + zero_point)``.

    Attributes:
        scale: float32, [1] or [channels].
        zero_point: int32 (int64 per channel), of the same shape.
        dtype: Storage, whose whole range is used.
        quant_min, quant_max: Smallest and largest integer.
        axis: Channel axis; ``None`` where one scale is for the whole tensor.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    dtype: torch.dtype
    quant_min: int
    quant_max: int
    axis: int | None = None


def activation_qparams(low: float, high: float, config: TensorConfig) -> QParams:
    """Scale and zero point of an activation of range ``[low, high]``, which is widened to hold zero."""
    dtype, smallest, largest = LIMITS[config.dtype]
    low, high = min(low, 0.0), max(high, 0.0)
    if config.scheme == "sym":
        magnitude = max(-low, high)
        scale = magnitude / ((largest - smallest) // 2)
        zero_point = (largest + smallest + 1) // 2
    else:
        scale = (high - low) / (largest - smallest)
        zero_point = smallest
        if scale > _SMALLEST:
            zero_point = int(np.clip(np.rint(smallest - low / scale), smallest, largest))
    scale = scale if scale > _SMALLEST else 1.0
    return QParams(
        torch.tensor([scale], dtype=torch.float32),
        torch.tensor([zero_point], dtype=torch.int32),
        dtype,
        smallest,
        largest,
    )


def weight_qparams(weight: torch.Tensor, config: TensorConfig, axis: int = 0, reduce_range: bool = False) -> QParams:
    """Scales of a symmetric int8 weight.

    One scale for the whole tensor is given as equal scales for all channels: the integer kernels know no other form.

    Args:
        weight: Float.
        axis: Output channels.
        reduce_range: Stay within 7 bits, see ``cpu.needs_reduce_range``.
    """
    values = weight.detach().float()
    others = [dimension for dimension in range(values.dim()) if dimension != axis]
    magnitudes = values.abs().amax(dim=others) if others else values.abs()
    if config.granularity == "per_tensor":
        magnitudes = magnitudes.max().expand_as(magnitudes)
    largest = 2 ** (_REDUCED_BITS - 1) if reduce_range else 127
    scale = (magnitudes / largest).contiguous()
    scale = torch.where(scale > _SMALLEST, scale, torch.ones_like(scale))
    dtype, quant_min, quant_max = LIMITS["int8"]
    return QParams(scale, torch.zeros(scale.shape, dtype=torch.int64), dtype, quant_min, quant_max, axis)
