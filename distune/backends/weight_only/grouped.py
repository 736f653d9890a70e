"""Integers, scales and zero points of a weight whose input channels are quantized in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distune.errors import TrialError

BITS = range(2, 9)
"""Widths that a weight can be quantized to."""

Float = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class WeightFormat:
    """How a weight is quantized, whatever algorithm finds the integers.

    Attributes:
        bits: Width of an integer, 2 to 8.
        group_size: Input channels that share scale and zero point; -1 is all of them. The last group may be shorter.
        scheme: ``sym``: the zero point is the middle level ``2**(bits - 1)``. ``asym``: it is chosen by group.

    Raises:
        TrialError: A value outside these.
    """

    bits: int
    group_size: int
    scheme: Literal["sym", "asym"]

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise TrialError(f"weight-only quantization has 2 to 8 bits, not {self.bits}")
        if self.group_size != -1 and self.group_size < 1:
            raise TrialError(f"a group has 1 or more input channels, or -1 for all of them, not {self.group_size}")
        if self.scheme not in ("sym", "asym"):
            raise TrialError(f"weight-only quantization is sym or asym, not {self.scheme!r}")

    @property
    def levels(self) -> int:
        """Largest integer."""
        return int(2**self.bits - 1)

    def group(self, channels: int) -> int:
        """Length of a group of a weight of so many input channels."""
        return channels if self.group_size == -1 else min(self.group_size, channels)


@dataclass(frozen=True)
class GroupedWeight:
    """A quantized weight [K, N]: ``(integers - zero_points) * scales``, then divided by ``input_scale``.

    Attributes:
        integers: uint8 [K, N].
        scales: float32 [groups, N]; may be negative.
        zero_points: float32 [groups, N]; whole numbers, except HQQ's.
        format: Its format.
        input_scale: float32 [K] by which the rows were multiplied before they were quantized, so that the inputs must
            be divided by it (AWQ); ``None`` where they were not.
    """

    integers: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.float32]
    format: WeightFormat
    input_scale: NDArray[np.float32] | None = None

    @property
    def has_whole_zero_points(self) -> bool:
        """The zero points are integers of the format."""
        return bool(np.array_equal(self.zero_points, np.rint(self.zero_points)))

    def dequantized(self) -> NDArray[np.float32]:
        """The real weight that the integers stand for, float32 [K, N], ``input_scale`` not taken out."""
        size = self.format.group(len(self.integers))
        rows = np.arange(len(self.integers)) // size
        return (self.integers.astype(np.float32) - self.zero_points[rows]) * self.scales[rows]

    def effective(self) -> NDArray[np.float32]:
        """The weight that the original inputs meet, float32 [K, N]."""
        values = self.dequantized()
        return values if self.input_scale is None else values / self.input_scale[:, None]


def grouped(weight: Float, size: int) -> Float:
    """A weight [K, N] as [groups, size, N], the last group filled up with zeros."""
    channels, outputs = weight.shape
    groups = -(-channels // size)
    if groups * size != channels:
        weight = np.concatenate([weight, np.zeros((groups * size - channels, outputs), weight.dtype)])
    return weight.reshape(groups, size, outputs)


def parameters(groups: Float, form: WeightFormat) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points, float32 [..., N], by which the values of each group are covered.

    The conventions are those of ONNX Runtime's ``MatMulNBits`` quantizer. Symmetric: the value of largest magnitude is
    the lowest level exactly, which makes the scale negative where it is positive, and no level is lost. Asymmetric:
    zero is a level exactly.

    Args:
        groups: Values [..., size, N].
    """
    low, high = groups.min(axis=-2), groups.max(axis=-2)
    return parameters_of_range(low, high, form)


def parameters_of_range(low: Float, high: Float, form: WeightFormat) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As ``parameters``, from the smallest and the largest value of each group."""
    if form.scheme == "sym":
        middle = 2.0 ** (form.bits - 1)
        extreme = np.where(np.abs(high) > np.abs(low), high, low)
        scales = (extreme / -middle).astype(np.float32)
        scales[scales == 0] = 1.0
        return scales, np.full(scales.shape, middle, np.float32)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = ((high - low) / form.levels).astype(np.float32)
    scales[scales == 0] = 1.0
    zero_points = np.clip(np.rint(-low / scales), 0, form.levels).astype(np.float32)
    return scales, zero_points


def to_integers(values: Float, scales: Float, zero_points: Float, form: WeightFormat) -> Float:
    """The nearest levels of ``values``; arguments broadcast, the result has the type of ``values``."""
    levels = np.rint(values / scales + zero_points)
    return np.clip(levels, 0, form.levels)


def rounded(groups: Float, scales: Float, zero_points: Float, form: WeightFormat) -> Float:
    """``groups`` [G, size, N] on their nearest levels, as real values; ``scales`` and ``zero_points`` are [G, N]."""
    levels = to_integers(groups, scales[:, None], zero_points[:, None], form)
    return (levels - zero_points[:, None]) * scales[:, None]


def quantized(
    weight: Float,
    scales: NDArray[np.float32],
    zero_points: NDArray[np.float32],
    form: WeightFormat,
    input_scale: NDArray[np.float32] | None = None,
) -> GroupedWeight:
    """``weight`` [K, N] rounded to nearest with given scales and zero points [groups, N]."""
    channels = len(weight)
    blocks = grouped(weight, form.group(channels))
    levels = to_integers(blocks, scales[:, None], zero_points[:, None], form)
    integers = levels.reshape(-1, weight.shape[1])[:channels].astype(np.uint8)
    return GroupedWeight(integers, scales, zero_points, form, input_scale)
