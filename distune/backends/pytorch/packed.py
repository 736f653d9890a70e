"""Linear layers whose weights are kept in few bits, and how they run.

``packed``: any width and group, stored in just as many bits and made float at every call: saves bytes, not time.
``int4``, ``int8``: ATen's ``_weight_int4pack_mm_for_cpu`` (groups of 32, 64, 128 or 256 input channels, any zero point)
and ``_weight_int8pack_mm`` (one scale an output channel, symmetric). They are called in bfloat16, to which the inputs
are rounded: with float32 the same kernels run scalar code (torch 2.13 on AVX512: 0.21 ms for one row of 576 x 192
against 0.012 ms, and 900 ms against 20 ms for 928 rows, where a float32 product takes 15 ms).
``dequantized``: kept as fp32. The numbers of ``packed`` in less time, for judging; deployed it saves nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


_TOLERANCE = 0.02
"""Of a kernel's largest output: bfloat16 holds 8 bits."""


def kernel_of(form: WeightFormat, channels: int) -> Kind | None:
    """The integer kernel for a format and so many input channels; ``None`` where there is none."""
    if form.bits == 4 and _int4_group(form, channels) and int4_runs():
        return "int4"
    if form.bits == 8 and form.scheme == "sym" and form.group(channels) == channels and int8_runs():
        return "int8"
    return None


def linear_of(weight: GroupedWeight, bias: Tensor | None, kind: Kind) -> nn.Module:
    """The layer ``x -> x W + bias`` of a weight [K, N]."""
    makers = {"int4": Int4Linear, "int8": Int8Linear, "packed": PackedLinear, "dequantized": DequantizedLinear}
    return makers[kind](weight, bias).eval()


class _WeightOnlyLinear(nn.Module, ABC):  # type: ignore[misc]  # torch is not typed here
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

    @abstractmethod
    def product(self, rows: Tensor) -> Tensor:
        """``rows @ W``."""


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
        self.register_buffer("scales_and_zeros", _tensor(both).to(torch.bfloat16))

    def product(self, rows: Tensor) -> Tensor:
        rows = rows.to(torch.bfloat16)
        made: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales_and_zeros)
        return made[:, : self.outputs].to(torch.float32)


class Int8Linear(_WeightOnlyLinear):
    """On ATen's int8 kernel."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.register_buffer("weight", _tensor((weight.integers.astype(np.int16) - 128).T.astype(np.int8)))
        self.register_buffer("scales", _tensor(weight.scales[0]).to(torch.bfloat16))

    def product(self, rows: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten._weight_int8pack_mm(rows.to(torch.bfloat16), self.weight, self.scales)
        return made.to(torch.float32)


class PackedLinear(_WeightOnlyLinear):
    """Packed integers that become a float weight at every call."""

    packed: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.channels = len(weight.integers)
        self.group = weight.format.group(self.channels)
        self.bits = weight.format.bits
        zero_points: NDArray[np.float32] | NDArray[np.uint8] | None = weight.zero_points
        if weight.format.scheme == "sym":
            zero_points = None
        elif weight.has_whole_zero_points:
            zero_points = weight.zero_points.astype(np.uint8)
        self.register_buffer("packed", _tensor(packed_bits(weight.integers.T, self.bits)))
        self.register_buffer("scales", _tensor(weight.scales.T))
        self.register_buffer("zero_points", None if zero_points is None else _tensor(zero_points.T))

    def product(self, rows: Tensor) -> Tensor:
        return rows @ self.float_weight().t()

    def float_weight(self) -> Tensor:
        """The weight [N, K]."""
        count = self.outputs * self.channels
        integers = unpacked_bits(self.packed, self.bits)[:count].reshape(self.outputs, self.channels)
        values = integers.to(torch.float32)
        middle = float(2 ** (self.bits - 1))
        zeros = middle if self.zero_points is None else self._by_channel(self.zero_points.to(torch.float32))
        return (values - zeros) * self._by_channel(self.scales)

    def as_float(self) -> DequantizedLinear:
        """The layer with its weight made float for good: the same numbers in less time."""
        out = DequantizedLinear.__new__(DequantizedLinear)
        nn.Module.__init__(out)
        out.outputs = self.outputs
        for name, buffer in (("bias", self.bias), ("inverse_input_scale", self.inverse_input_scale)):
            out.register_buffer(name, buffer)
        out.register_buffer("weight", self.float_weight())
        return out.eval()  # type: ignore[no-any-return]

    def _by_channel(self, of_group: Tensor) -> Tensor:
        return of_group.repeat_interleave(self.group, 1, output_size=of_group.shape[1] * self.group)[:, : self.channels]


class DequantizedLinear(_WeightOnlyLinear):
    """An fp32 weight that holds the levels of fewer bits."""

    weight: Tensor

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.register_buffer("weight", _tensor(weight.dequantized().T))

    def product(self, rows: Tensor) -> Tensor:
        return rows @ self.weight.t()


def packed_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers in ``bits`` bits each: bytes (8 bits), halves and quarters of bytes (4, 2), else one row a bit."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if 8 % bits:
        return np.stack([np.packbits((flat >> bit) & 1, bitorder="little") for bit in range(bits)])
    per_byte = 8 // bits
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = flat
    shifted = padded.reshape(-1, per_byte) << (np.arange(per_byte, dtype=np.uint8) * bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=1), np.uint8)


def unpacked_bits(packed: Tensor, bits: int) -> Tensor:
    """Inverse of ``packed_bits``, flat; there may be more values at the end."""
    if bits == 8:
        return packed
    if 8 % bits:
        split = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
        weight = torch.arange(bits, dtype=torch.uint8).reshape(-1, 1)
        return (split.reshape(bits, -1) << weight).sum(0, dtype=torch.int32)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).reshape(-1)


@cache
def int4_runs() -> bool:
    """Whether the installed torch runs the int4 kernel on this machine and gives the right numbers."""
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
    except RuntimeError:  # torch has no such kernel for this processor
        return False
    return bool(np.abs(actual - expected).max() <= _TOLERANCE * np.abs(expected).max())


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
    "packed_bits",
    "unpacked_bits",
]
