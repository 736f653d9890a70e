"""Convolutions and matrix products as one thing: a weight matrix that is multiplied with rows of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Padding = tuple[tuple[int, int], ...] | Literal["same_upper", "same_lower"]
"""Padding before and after by spatial axis, or so much that the output has the input's size over the stride."""


@dataclass(frozen=True)
class Layer:
    """One op whose weight is constant.

    Attributes:
        name: The op's name.
        weight: Name of the weight.
        shape: Of the weight: [outputs, inputs of a group, *kernel] of a convolution, else a matrix.
        input: Name of the activation that it is multiplied with; its channels lie along ``channel_axis``.
        output: Name of the tensor that has the bias added.
        key: Same for layers that multiply the same rows.
        bias: Name of the constant that is added to the outputs; empty if none.
        is_conv: It is a convolution.
        transposed: The matrix is stored [inputs, outputs].
        groups: Of a grouped convolution, else 1.
        strides, dilations, padding: Of a convolution, by spatial axis.
    """

    name: str
    weight: str
    shape: tuple[int, ...]
    input: str
    output: str
    key: str
    bias: str = ""
    is_conv: bool = False
    transposed: bool = False
    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    padding: Padding = ()

    @property
    def channel_axis(self) -> int:
        """Axis of the input's channels."""
        return 1 if self.is_conv else -1

    @property
    def inputs(self) -> int:
        """Input channels."""
        if self.is_conv:
            return self.shape[1] * self.groups
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.shape[self.output_axis]

    @property
    def output_axis(self) -> int:
        """Axis of the weight along which outputs lie."""
        return 1 if self.transposed else 0

    @property
    def row_length(self) -> int:
        """Inputs of one output."""
        return int(np.prod(self.shape[1:])) if self.is_conv else self.inputs

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The weight as [groups, outputs of a group, row length]."""
        rows = weight.T if self.transposed else weight
        return np.asarray(rows.reshape(self.groups, -1, self.row_length))

    def weight_of(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Inverse of ``matrix``."""
        flat = matrix.reshape(-1, self.row_length)
        return np.ascontiguousarray(flat.T if self.transposed else flat.reshape(self.shape))

    def input_peaks(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Largest magnitude of the weights of each input channel, [inputs]."""
        if not self.is_conv:
            return np.asarray(np.abs(weight).max(self.output_axis))
        grouped = np.abs(weight).reshape(self.groups, -1, self.shape[1], int(np.prod(self.shape[2:])))
        peaks: NDArray[Any] = grouped.max((1, 3)).reshape(-1)
        return peaks

    def output_peaks(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Largest magnitude of the weights of each output channel, [outputs]."""
        return np.asarray(np.abs(self.matrix(weight)).max(2).reshape(-1))

    def scale_inputs(self, weight: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
        """The weight with each input channel's weights times its factor."""
        if not self.is_conv:
            return np.asarray(weight * (factors[:, None] if self.transposed else factors[None, :]))
        grouped = weight.reshape(self.groups, -1, self.shape[1], *self.shape[2:])
        shape = (self.groups, 1, self.shape[1], *([1] * (len(self.shape) - 2)))
        return np.asarray((grouped * factors.reshape(shape)).reshape(self.shape))

    def scale_outputs(self, weight: NDArray[Any], factors: NDArray[Any]) -> NDArray[Any]:
        """The weight with each output channel's weights times its factor."""
        shape = [1] * len(self.shape)
        shape[self.output_axis] = -1
        return np.asarray(weight * factors.reshape(shape))

    def rows(self, values: NDArray[Any], limit: int) -> NDArray[np.float32]:
        """Rows that the weight is multiplied with, [groups, rows, row length], evenly thinned to ``limit`` or less."""
        values = np.asarray(values, np.float32)
        if not self.is_conv:
            flat = values.reshape(-1, values.shape[-1])
            return flat[:: -(-len(flat) // limit) or 1][None]
        rank = len(self.shape) - 2
        kernel = self.shape[2:]
        padded = np.pad(values, [(0, 0), (0, 0), *self._padding(values.shape[2:])])
        window = tuple((k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True))
        axes = tuple(range(2, 2 + rank))
        patches = np.lib.stride_tricks.sliding_window_view(padded, window, axes)
        every = (slice(None), slice(None), *(slice(None, None, s) for s in self.strides))
        within = (*every, *(slice(None, None, dilation) for dilation in self.dilations))
        patches = patches[within]
        positions = np.indices((patches.shape[0], *patches.shape[2 : 2 + rank])).reshape(1 + rank, -1)
        chosen = positions[:, :: -(-positions.shape[1] // limit) or 1]
        where = (chosen[0], slice(None), *chosen[1:])
        taken = patches[where]  # [rows, channels, *kernel]
        grouped = taken.reshape(len(taken), self.groups, self.row_length)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))

    def _padding(self, size: tuple[int, ...]) -> list[tuple[int, int]]:
        """Padding before and after, by spatial axis."""
        if not isinstance(self.padding, str):
            return list(self.padding)
        out = []
        for n, k, s, d in zip(size, self.shape[2:], self.strides, self.dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            out.append((small, large) if self.padding == "same_upper" else (large, small))
        return out


__all__ = ["Layer", "Padding"]
