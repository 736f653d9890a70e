"""Dynamic quantization: weights are integers in the file, activations are quantized while the model runs.

``DynamicQuantizeLinear`` takes the range of each batch as it comes, so nothing is calibrated, and a sample's result
depends a little on what else is in its batch. The patterns written here are those that ONNX Runtime fuses
(``DynamicQuantizeMatMul``, ``MatMulIntegerToFloat``); ops that are not dynamic stay as they are, so that static and
dynamic ops live in one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames, attribute, has_factors
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.weights import QuantizedWeight, drop_unused_constants, quantize_weight
from distune.errors import TrialError
from distune.space.op_config import OpConfig, TensorConfig

MICROSOFT = "com.microsoft"


def runs_dynamically(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime has a dynamically quantized form of this very node."""
    check = _CHECKS.get(node.op_type)
    weights = [node.input[position] for position in _WEIGHT_POSITIONS.get(node.op_type, ())]
    if check is None or not all(_is_float32(index, name) for name in weights):
        return False
    return check(index, node)


def write_dynamic(proto: onnx.ModelProto, ops: Mapping[str, OpConfig], reduce_range: bool = False) -> None:
    """Rewrite the nodes of ``ops`` in place.

    Args:
        proto: fp32, or with other nodes quantized already; constants of the nodes in ``ops`` are fp32.
        ops: Dynamic op configs by node name.
        reduce_range: Keep int8 weights within 7 bits (see ``cpu.needs_reduce_range``).

    Raises:
        TrialError: A node is of a type that has no dynamic form, or its weight is no constant.
    """
    if not ops:
        return
    writer = _Writer(proto, reduce_range)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        config = ops.get(node.name)
        proto.graph.node.extend([node] if config is None else writer.write(node, config))
    drop_unused_constants(proto)
    if all(entry.domain != MICROSOFT for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


class _Writer:
    """Writes dynamic ops of one graph; tensors and weights that several of them read are quantized once."""

    def __init__(self, proto: onnx.ModelProto, reduce_range: bool) -> None:
        self._proto = proto
        self._reduce_range = reduce_range
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._unused = UnusedNames(proto)
        self._stored: dict[str, list[onnx.TensorProto]] = {}
        self._quantized: dict[str, tuple[str, str, str]] = {}

    def write(self, node: onnx.NodeProto, config: OpConfig) -> list[onnx.NodeProto]:
        writers: Mapping[str, Callable[[onnx.NodeProto, TensorConfig], list[onnx.NodeProto]]] = {
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "Conv": self._conv,
            "Gather": self._gather,
            "LSTM": self._lstm,
            "Attention": self._attention,
            "EmbedLayerNormalization": self._embedding,
        }
        if node.op_type not in writers or config.weight is None:
            raise TrialError(f"op {node.name!r} ({node.op_type}) cannot be quantized dynamically")
        return writers[node.op_type](node, config.weight)

    # ------------------------------------------------------------------------------------------------------- products

    def _matmul(self, node: onnx.NodeProto, config: TensorConfig) -> list[onnx.NodeProto]:
        values = self._value(node.input[1])
        # Of a stack of matrices the kernel takes scales of columns, but no zero points; a vector has no columns.
        by_column = values.ndim == 2 or (values.ndim > 2 and config.scheme == "sym")
        weight = self._weight(node.input[1], config, -1 if by_column else None, values)
        return self._product(node, weight, node.output[0])

    def _gemm(self, node: onnx.NodeProto, config: TensorConfig) -> list[onnx.NodeProto]:
        values = self._value(node.input[1])
        weight = self._weight(node.input[1], config, -1, values.T if attribute(node, "transB", 0) else values)
        if len(node.input) < 3 or not node.input[2]:
            return self._product(node, weight, node.output[0])
        product = self._unused(f"{node.output[0]}_product")
        return [*self._product(node, weight, product), self._bias(node, product, self._value(node.input[2]))]

    def _product(self, node: onnx.NodeProto, weight: tuple[str, str, str], output: str) -> list[onnx.NodeProto]:
        nodes, (data, scale, zero_point) = self._activation(node.input[0])
        # A zero point of zero is left out: ONNX Runtime takes a vector of them, zeros too, by a slower kernel.
        own_zero = [weight[2]] if self._value(weight[2]).any() else []
        sums = self._unused(f"{output}_integer")
        integers = helper.make_node("MatMulInteger", [data, weight[0], zero_point, *own_zero], [sums], node.name)
        return [*nodes, integers, *self._to_float(node.name, sums, (scale, weight[1]), output)]

    def _conv(self, node: onnx.NodeProto, config: TensorConfig) -> list[onnx.NodeProto]:
        values = self._value(node.input[1])
        axis = 0 if config.granularity == "per_channel" else None
        quantized = quantize_weight(values, config, axis, self._reduce(config))
        channels = (-1,) + (1,) * (values.ndim - 2)
        scale = quantized.scale.reshape(channels) if quantized.scale.ndim else quantized.scale
        # The kernel knows one zero point only; per channel the scheme is symmetric, and all of them are zero.
        zero_point = quantized.zero_point.reshape(-1)[:1].reshape(())
        weight = self._store(node.input[1], QuantizedWeight(quantized.values, scale, zero_point))
        nodes, (data, data_scale, data_zero) = self._activation(node.input[0])
        has_bias = len(node.input) > 2 and bool(node.input[2])
        output = self._unused(f"{node.output[0]}_product") if has_bias else node.output[0]
        sums = self._unused(f"{output}_integer")
        integers = helper.make_node("ConvInteger", [data, weight[0], data_zero, weight[2]], [sums], node.name)
        integers.attribute.extend(node.attribute)
        nodes = [*nodes, integers, *self._to_float(node.name, sums, (data_scale, weight[1]), output)]
        if has_bias:
            nodes.append(self._bias(node, output, self._value(node.input[2]).reshape(channels)))
        return nodes

    def _bias(self, node: onnx.NodeProto, product: str, values: NDArray[Any]) -> onnx.NodeProto:
        bias = self._constant(f"{node.name}_bias", values)
        return helper.make_node("Add", [product, bias], [node.output[0]], self._unused(f"{node.name}_bias_add"))

    def _to_float(self, name: str, integers: str, scales: Sequence[str], output: str) -> list[onnx.NodeProto]:
        """Integer sums times the scales of both factors."""
        cast, scale = self._unused(f"{integers}_cast"), self._unused(f"{integers}_scale")
        names = [self._unused(f"{name}_{what}") for what in ("cast", "scales", "output_scale")]
        return [
            helper.make_node("Cast", [integers], [cast], names[0], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", list(scales), [scale], names[1]),
            helper.make_node("Mul", [cast, scale], [output], names[2]),
        ]

    # --------------------------------------------------------------------------------------------------------- others

    def _gather(self, node: onnx.NodeProto, config: TensorConfig) -> list[onnx.NodeProto]:
        data, scale, zero_point = self._weight(node.input[0], config, axis=None)
        taken = self._unused(f"{node.output[0]}_integer")
        gather = helper.make_node("Gather", [data, node.input[1]], [taken], node.name)
        gather.attribute.extend(node.attribute)
        name = self._unused(f"{node.name}_dequantize")
        dequantize = helper.make_node("DequantizeLinear", [taken, scale, zero_point], [node.output[0]], name)
        return [gather, dequantize]

    def _lstm(self, node: onnx.NodeProto, config: TensorConfig) -> list[onnx.NodeProto]:
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        weights = []
        for position in (1, 2):
            values = self._value(node.input[position])  # [directions, 4 * hidden, inputs]
            directions, gates, width = values.shape
            if config.granularity == "per_channel":
                flat = quantize_weight(values.reshape(-1, width), config, 0, self._reduce(config))
                scale, zero_point = flat.scale.reshape(directions, gates), flat.zero_point.reshape(directions, gates)
            else:
                each = [quantize_weight(part, config, None, self._reduce(config)) for part in values]
                flat = QuantizedWeight(
                    np.concatenate([part.values for part in each]),
                    np.array([part.scale for part in each], np.float32),
                    np.array([part.zero_point for part in each]),
                )
                scale, zero_point = flat.scale, flat.zero_point
            integers = flat.values.reshape(directions, gates, width).transpose(0, 2, 1)
            weights.append(self._store(node.input[position], QuantizedWeight(integers, scale, zero_point)))
        (w, w_scale, w_zero), (r, r_scale, r_zero) = weights
        lstm = helper.make_node(
            "DynamicQuantizeLSTM",
            [inputs[0], w, r, *inputs[3:8], w_scale, w_zero, r_scale, r_zero],
            list(node.output),
            node.name,
            domain=MICROSOFT,
        )
        lstm.attribute.extend(a for a in node.attribute if a.name != "layout")
        return [lstm]

    def _attention(self, node: onnx.NodeProto, config: TensorConfig) -> list[onnx.NodeProto]:
        weight, weight_scale, weight_zero = self._weight(node.input[1], config, axis=-1)
        nodes, (data, scale, zero_point) = self._activation(node.input[0])
        inputs = [*node.input, *[""] * (5 - len(node.input))]
        attention = helper.make_node(
            "QAttention",
            [data, weight, inputs[2], scale, weight_scale, inputs[3], zero_point, weight_zero, inputs[4]],
            list(node.output),
            node.name,
            domain=MICROSOFT,
        )
        attention.attribute.extend(node.attribute)
        return [*nodes, attention]

    def _embedding(self, node: onnx.NodeProto, config: TensorConfig) -> list[onnx.NodeProto]:
        tables = [self._weight(name, config, axis=None) if name else ("", "", "") for name in node.input[2:7]]
        mask = node.input[7] if len(node.input) > 7 else ""
        embedding = helper.make_node(
            "QEmbedLayerNormalization",
            [*node.input[:2], *[t[0] for t in tables], mask, *[t[1] for t in tables], *[t[2] for t in tables]],
            list(node.output),
            node.name,
            domain=MICROSOFT,
        )
        embedding.attribute.extend(node.attribute)
        return [embedding]

    # -------------------------------------------------------------------------------------------------------- tensors

    def _activation(self, tensor: str) -> tuple[list[onnx.NodeProto], tuple[str, str, str]]:
        """Names of an activation's integers, scale and zero point, and the node that makes them, where it is new."""
        if tensor in self._quantized:
            return [], self._quantized[tensor]
        integers, scale, zero_point = (
            self._unused(f"{tensor}_dynamic{what}") for what in ("", "_scale", "_zero_point")
        )
        self._quantized[tensor] = integers, scale, zero_point
        name = self._unused(f"{tensor}_QuantizeDynamic")
        node = helper.make_node("DynamicQuantizeLinear", [tensor], [integers, scale, zero_point], name)
        return [node], self._quantized[tensor]

    def _weight(
        self, tensor: str, config: TensorConfig, axis: int | None, values: NDArray[Any] | None = None
    ) -> tuple[str, str, str]:
        axis = axis if config.granularity == "per_channel" else None
        values = self._value(tensor) if values is None else values
        return self._store(tensor, quantize_weight(values, config, axis, self._reduce(config)))

    def _store(self, tensor: str, weight: QuantizedWeight) -> tuple[str, str, str]:
        return (
            self._constant(f"{tensor}_quantized", weight.values),
            self._constant(f"{tensor}_scale", weight.scale),
            self._constant(f"{tensor}_zero_point", np.asarray(weight.zero_point)),
        )

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        """Name of a constant with this value; one that was added as ``name`` and is equal serves again."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)))
        for stored in self._stored.setdefault(name, []):
            tensor.name = stored.name
            if tensor == stored:
                return str(stored.name)
        tensor.name = unused = self._unused(name)
        self._stored[name].append(tensor)
        self._constants[unused] = tensor
        self._proto.graph.initializer.append(tensor)
        return unused

    def _value(self, tensor: str) -> NDArray[Any]:
        if tensor not in self._constants:
            raise TrialError(f"tensor {tensor!r} is no constant, so it cannot be quantized as a weight")
        return values_of(self._constants[tensor])

    def _reduce(self, config: TensorConfig) -> bool:
        return self._reduce_range and config.dtype == "int8"


def _is_float32(index: GraphIndex, tensor: str) -> bool:
    return tensor in index.initializers and index.element_type.get(tensor) == onnx.TensorProto.FLOAT


def _dynamic_input(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return index.element_type.get(node.input[0]) == onnx.TensorProto.FLOAT and not index.is_constant(node.input[0])


def _dynamic_gemm(index: GraphIndex, node: onnx.NodeProto) -> bool:
    bias = list(node.input[2:3])
    return (
        _dynamic_input(index, node)
        and not attribute(node, "transA", 0)
        and not has_factors(node)
        and all(_is_float32(index, name) for name in bias if name)
    )


def _dynamic_conv(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return _dynamic_input(index, node) and all(_is_float32(index, name) for name in node.input[2:3] if name)


def _dynamic_lstm(index: GraphIndex, node: onnx.NodeProto) -> bool:
    return not attribute(node, "layout", 0)


def _dynamic_attention(index: GraphIndex, node: onnx.NodeProto) -> bool:
    unusual = {a.name for a in node.attribute} & {"qkv_hidden_sizes", "past_present_share_buffer"}
    return _dynamic_input(index, node) and not unusual and not any(node.input[5:])


def _dynamic_embedding(index: GraphIndex, node: onnx.NodeProto) -> bool:
    tables = [name for name in node.input[2:7] if name]
    return len(node.output) <= 2 and all(_is_float32(index, name) for name in tables) and not any(node.input[8:])


_CHECKS: Mapping[str, Callable[[GraphIndex, onnx.NodeProto], bool]] = {
    "MatMul": _dynamic_input,
    "Gemm": _dynamic_gemm,
    "Conv": _dynamic_conv,
    "Gather": lambda index, node: True,
    "LSTM": _dynamic_lstm,
    "Attention": _dynamic_attention,
    "EmbedLayerNormalization": _dynamic_embedding,
}

_WEIGHT_POSITIONS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (1,),
    "Gemm": (1,),
    "Conv": (1,),
    "Gather": (0,),
    "LSTM": (1, 2),
    "Attention": (1,),
    "EmbedLayerNormalization": (2, 3),
}
