"""Conv, Gemm and MatMul as one thing: a weight matrix that is multiplied with rows of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from distune.backends.onnxruntime.graph import GraphIndex, attribute
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.shared import values_of

Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Layer:
    """One weighted op whose weight is constant.

    Attributes:
        node: The Conv, Gemm or MatMul.
        weight: Name of the weight.
        shape: Of the weight.
        input: Name of the activation that it is multiplied with.
        bias: Name of the constant that is added, in the node itself or by the Add behind a MatMul; empty if none.
        output: Name of the tensor that has the bias added.
        adder: Name of the Add behind a MatMul that adds the bias; empty if none.
    """

    node: onnx.NodeProto
    weight: str
    shape: tuple[int, ...]
    input: str
    bias: str
    output: str
    adder: str = ""

    @property
    def name(self) -> str:
        """The op's name."""
        return str(self.node.name)

    @property
    def is_conv(self) -> bool:
        """It is a convolution."""
        return bool(self.node.op_type == "Conv")

    @property
    def groups(self) -> int:
        """Of a grouped convolution, else 1."""
        return attribute(self.node, "group", 1) if self.is_conv else 1

    @property
    def channel_axis(self) -> int:
        """Axis of the input's channels."""
        return 1 if self.is_conv else -1

    @property
    def transposed(self) -> bool:
        """The weight is stored [inputs, outputs]."""
        return bool(
            self.node.op_type == "MatMul" or (self.node.op_type == "Gemm" and not attribute(self.node, "transB", 0))
        )

    @property
    def inputs(self) -> int:
        """Input channels."""
        if self.is_conv:
            return self.shape[1] * self.groups
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def output_axis(self) -> int:
        """Axis of the weight along which outputs lie."""
        return 1 if self.transposed else 0

    @cached_property
    def key(self) -> str:
        """Same for layers that multiply the same rows."""
        if not self.is_conv:
            return f"rows:{self.input}"
        geometry = [f"{a.name}={list(a.ints) or a.i or a.s!r}" for a in sorted(self.node.attribute, key=_name)]
        return f"patches{list(self.shape[2:])} {' '.join(geometry)}:{self.input}"

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
        strides, dilations = (_ints(self.node, name, rank) for name in ("strides", "dilations"))
        pads = _pads(self.node, values.shape[2:], kernel, strides, dilations)
        padded = np.pad(values, [(0, 0), (0, 0), *pads])
        window = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
        axes = tuple(range(2, 2 + rank))
        patches = np.lib.stride_tricks.sliding_window_view(padded, window, axes)
        every = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
        within = (*every, *(slice(None, None, dilation) for dilation in dilations))
        patches = patches[within]
        positions = np.indices((patches.shape[0], *patches.shape[2 : 2 + rank])).reshape(1 + rank, -1)
        chosen = positions[:, :: -(-positions.shape[1] // limit) or 1]
        where = (chosen[0], slice(None), *chosen[1:])
        taken = patches[where]  # [rows, channels, *kernel]
        grouped = taken.reshape(len(taken), self.groups, self.row_length)
        return np.ascontiguousarray(grouped.transpose(1, 0, 2))


def layers(model: PreparedModel, names: Iterable[str] | None = None) -> Iterator[Layer]:
    """The layers of a model in graph order, or those of the given op names."""
    wanted = None if names is None else set(names)
    for node in model.proto.graph.node:
        if wanted is None or node.name in wanted:
            layer = layer_of(model.index, node)
            if layer is not None:
                yield layer


def constant(index: GraphIndex, name: str) -> NDArray[Any]:
    """The values of an initializer."""
    return values_of(index.initializers[name])


def set_constant(proto: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    """Give an initializer new values (of the same type, any shape)."""
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, dtype, order="C"), name))


def layer_of(index: GraphIndex, node: onnx.NodeProto) -> Layer | None:
    """``node`` as a layer; ``None`` where it is none, or its weight is not constant."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    if node.input[1] not in index.initializers or index.is_constant(node.input[0]):
        return None
    weight = index.initializers[node.input[1]]
    if not index.is_float(weight.name) or (node.op_type != "Conv" and len(weight.dims) != 2):
        return None
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or _scaled(node)):
        return None
    bias, output, adder = node.input[2] if len(node.input) > 2 else "", node.output[0], ""
    if node.op_type == "MatMul":
        after = index.only_consumer(output)
        if after is not None and after.op_type == "Add":
            added = next((name for name in after.input if name in index.initializers), "")
            if added and list(index.initializers[added].dims) == [weight.dims[1]]:
                bias, output, adder = added, after.output[0], after.name
    if bias and bias not in index.initializers:
        bias = ""
    return Layer(node, weight.name, tuple(weight.dims), node.input[0], bias, output, adder)


def _scaled(node: onnx.NodeProto) -> bool:
    return any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute)


def _name(item: onnx.AttributeProto) -> str:
    return str(item.name)


def _ints(node: onnx.NodeProto, name: str, rank: int) -> tuple[int, ...]:
    return next((tuple(a.ints) for a in node.attribute if a.name == name), (1,) * rank)


def _pads(
    node: onnx.NodeProto,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> list[tuple[int, int]]:
    """Padding before and after, by spatial axis."""
    rank = len(kernel)
    automatic = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        out = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            out.append((small, large) if automatic == b"SAME_UPPER" else (large, small))
        return out
    pads = next((tuple(a.ints) for a in node.attribute if a.name == "pads"), (0,) * (2 * rank))
    return [(pads[axis], pads[axis + rank]) for axis in range(rank)]
