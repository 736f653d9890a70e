"""Linear layers whose weights are kept in few bits, and how they run.

``int4``: ATen's ``_weight_int4pack_mm_for_cpu``; groups of 32, 64, 128 or 256 input channels, real zero points, so any
format of 4 bits (and any narrower one, in 4 bits) that can be cut into such groups.
``int8``: ATen's ``_weight_int8pack_mm``; one scale an output channel, symmetric.
``packed``: any width and group, stored in just as many bits and made float at every call: saves bytes and no time.
``dequantized``: kept as fp32; saves nothing and shows what the width does to accuracy.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distune.backends.weight_only.grouped import GroupedWeight, WeightFormat

Kind = Literal["int4", "int8", "packed", "dequantized"]

_GROUPS = (256, 128, 64, 32)
_MULTIPLE = 16
"""Output channels of a tile of the int4 kernel; a layer with others is filled up with zeros."""


def kernel_of(form: WeightFormat, channels: int, widen: bool = False) -> Kind | None:
    """The integer kernel for a format and so many input channels; ``None`` where there is none.

    Args:
        widen: Store widths that have no kernel in the next wider one that has.
    """
    if (form.bits == 4 or (widen and form.bits < 4)) and _int4_group(form, channels) and int4_runs():
        return "int4"
    whole = form.group(channels) == channels and form.scheme == "sym"
    if (form.bits == 8 or (widen and form.bits > 4)) and whole and int8_runs():
        return "int8"
    return None


def linear_of(weight: GroupedWeight, bias: Tensor | None, kind: Kind) -> nn.Module:
    """The layer ``x -> x W + bias`` of a weight [K, N]."""
    makers = {"int4": Int4Linear, "int8": Int8Linear, "packed": PackedLinear, "dequantized": DequantizedLinear}
    return makers[kind](weight, bias).eval()


class _WeightOnlyLinear(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """Scales the inputs where the weight asks for it, flattens them to rows, and adds the bias."""

    bias: Tensor | None
    inverse_input_scale: Tensor | None

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.outputs = weight.integers.shape[1]
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        scale = weight.input_scale
        self.register_buffer("inverse_input_scale", None if scale is None else _tensor(1.0 / scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.inverse_input_scale is not None:
            x = x * self.inverse_input_scale
        y = self.product(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.outputs)
        return y if self.bias is None else y + self.bias

    def product(self, rows: Tensor) -> Tensor:
        """``rows @ W``."""
        raise NotImplementedError


class Int4Linear(_WeightOnlyLinear):
    """On ATen's int4 kernel."""

    packed: Tensor
    scales_and_zeros: Tensor

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        channels, outputs = weight.integers.shape
        self.group = _int4_group(weight.format, channels)
        of_group = np.arange(channels // self.group) * self.group // weight.format.group(channels)
        rows = -(-outputs // _MULTIPLE) * _MULTIPLE
        integers = np.zeros((rows, channels), np.int32)
        integers[:outputs] = weight.integers.T
        # The kernel computes (integer - 8) * scale + zero.
        scales = weight.scales[of_group]
        zeros = (8.0 - weight.zero_points[of_group]) * scales
        both = np.zeros((len(of_group), rows, 2), np.float32)
        both[:, :outputs, 0], both[:, :outputs, 1] = scales, zeros
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(integers), 1)
        self.register_buffer("packed", packed)
        self.register_buffer("scales_and_zeros", _tensor(both))

    def product(self, rows: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales_and_zeros)
        return made[:, : self.outputs]


class Int8Linear(_WeightOnlyLinear):
    """On ATen's int8 kernel."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        middle = 2 ** (weight.format.bits - 1)
        self.register_buffer("weight", _tensor((weight.integers.astype(np.int16) - middle).T.astype(np.int8)))
        self.register_buffer("scales", _tensor(weight.scales[0]))

    def product(self, rows: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scales)
        return made


class PackedLinear(_WeightOnlyLinear):
    """Bit planes that become a float weight at every call."""

    planes: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.channels = len(weight.integers)
        self.group = weight.format.group(self.channels)
        self.middle = float(2 ** (weight.format.bits - 1))
        zero_points: NDArray[np.float32] | NDArray[np.uint8] | None = weight.zero_points
        if weight.format.scheme == "sym":
            zero_points = None
        elif weight.has_whole_zero_points:
            zero_points = weight.zero_points.astype(np.uint8)
        self.register_buffer("planes", _tensor(to_planes(weight.integers.T, weight.format.bits)))
        self.register_buffer("scales", _tensor(weight.scales.T))
        self.register_buffer("zero_points", None if zero_points is None else _tensor(zero_points.T))

    def product(self, rows: Tensor) -> Tensor:
        return rows @ self.float_weight().t()

    def float_weight(self) -> Tensor:
        """The weight [N, K]."""
        bits = (self.planes.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
        width = torch.arange(len(self.planes), dtype=torch.uint8).reshape(-1, 1)
        flat = (bits.reshape(len(self.planes), -1) << width).sum(0, dtype=torch.int32)
        integers = flat[: self.outputs * self.channels].reshape(self.outputs, self.channels).to(torch.float32)
        of_channel = torch.arange(self.channels) // self.group
        zeros = self.middle if self.zero_points is None else self.zero_points.to(torch.float32)[:, of_channel]
        return (integers - zeros) * self.scales[:, of_channel]


class DequantizedLinear(_WeightOnlyLinear):
    """An fp32 weight that holds the levels of fewer bits."""

    weight: Tensor

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.register_buffer("weight", _tensor(weight.dequantized().T))

    def product(self, rows: Tensor) -> Tensor:
        return rows @ self.weight.t()


def to_planes(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers as ``bits`` rows of one bit each, the lowest bit first: uint8 [bits, ceil(size / 8)]."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return np.stack([np.packbits((flat >> bit) & 1, bitorder="little") for bit in range(bits)])


@cache
def int4_runs() -> bool:
    """Whether the installed torch runs the int4 kernel on this machine in fp32 and gives the right numbers."""
    return _runs(WeightFormat(4, 32, "asym"), Int4Linear)


@cache
def int8_runs() -> bool:
    """As ``int4_runs``, of the int8 kernel."""
    return _runs(WeightFormat(8, -1, "sym"), Int8Linear)


def _runs(form: WeightFormat, layer: type[_WeightOnlyLinear]) -> bool:
    rng = np.random.default_rng(form.bits)
    groups = 64 // form.group(64)
    weight = GroupedWeight(
        rng.integers(0, form.levels + 1, (64, 24)).astype(np.uint8),
        rng.uniform(0.5, 1.5, (groups, 24)).astype(np.float32),
        np.full((groups, 24), 2.0 ** (form.bits - 1), np.float32),
        form,
    )
    rows = rng.standard_normal((3, 64)).astype(np.float32)
    expected = rows @ weight.dequantized()
    try:
        with torch.inference_mode():
            actual = layer(weight, None)(torch.from_numpy(rows)).numpy()
    except (RuntimeError, NotImplementedError):
        return False
    return bool(np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max())


def _int4_group(form: WeightFormat, channels: int) -> int:
    """The largest group of the kernel that a group of the format is made of; 0 where there is none."""
    own = form.group(channels)
    whole = own == channels
    fits = (size for size in _GROUPS if channels % size == 0 and own % size == 0)
    return next(fits, 0) if whole or channels % own == 0 else 0


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


__all__ = [
    "DequantizedLinear",
    "Int4Linear",
    "Int8Linear",
    "Kind",
    "PackedLinear",
    "int4_runs",
    "int8_runs",
    "kernel_of",
    "linear_of",
    "to_planes",
]
