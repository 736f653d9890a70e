"""ONNX Runtime's ``QDQQuantizer``, made fit for writing thousands of variants of one model.

What it writes is unchanged; only what would be computed again for every variant is remembered: scales, zero points and
integers of weights that were quantized the same way before (it loops over channels in Python), and who reads a tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import (
    QDQQuantizer,
    QDQTensorQuantInfo,
    QDQTensorQuantizedValue,
    QuantizationParams,
)
from onnxruntime.quantization.quant_utils import (
    QuantizedValue,
    QuantizedValueType,
    add_dequant_output_suffix,
    add_dequant_suffix,
    quantize_onnx_initializer,
)

from distune.backends.onnxruntime.shared import complete_tensor


@dataclass
class WeightCache:
    """Quantized weights of one model, shared by all variants that are written of it.

    Attributes:
        parameters: Scale, zero point and type by tensor name and how it is quantized.
        tensors: Integers by tensor name, zero points and scales.
    """

    parameters: dict[tuple[str, str], QuantizationParams] = field(default_factory=dict)
    tensors: dict[tuple[str, bytes, bytes], onnx.TensorProto] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget everything."""
        self.parameters.clear()
        self.tensors.clear()


class _IndexedModel(ONNXModel):  # type: ignore[misc]
    """Replaces the input of all nodes without looking at all nodes, which is quadratic in the size of the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            self._index(node)
        self._shown: onnx.TensorProto | None = None

    @contextmanager
    def showing(self, constant: onnx.TensorProto) -> Iterator[None]:
        """Have ``constant`` as the only one, for code that looks for it in all of them."""
        self._shown = constant
        try:
            yield
        finally:
            self._shown = None

    def initializer(self) -> Sequence[onnx.TensorProto]:
        constants: Sequence[onnx.TensorProto] = self.model.graph.initializer
        return constants if self._shown is None else [self._shown]

    def add_node(self, node: onnx.NodeProto) -> None:
        super().add_node(node)
        self._index(self.model.graph.node[-1])

    def replace_input_of_all_nodes(self, old_input_name: str, new_input_name: str) -> None:
        readers = self._readers.pop(old_input_name, [])
        for node in readers:
            self.replace_node_input(node, old_input_name, new_input_name)
        self._readers.setdefault(new_input_name, []).extend(readers)

    def replace_input_of_nodes(self, old_input_name: str, new_input_name: str, node_names_set: set[str]) -> None:
        super().replace_input_of_nodes(old_input_name, new_input_name, node_names_set)
        self._readers.setdefault(new_input_name, []).extend(self._readers.get(old_input_name, []))

    def _index(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            self._readers.setdefault(name, []).append(node)


class CachingQdqQuantizer(QDQQuantizer):  # type: ignore[misc]
    """Writes one quantized variant of a model.

    Args:
        model: Changed in place.
        nodes: Names of the nodes to quantize.
        op_types: Every op type that may be quantized.
        ranges: Range by activation.
        overrides: ``TensorQuantOverrides`` as ``quantize_static`` documents them.
        keep_activation_before: Tensors before which Relu and Clip must stay: a symmetric range reaches below zero, so
            that saturation does not do their work.
        cache: Shared by all variants of one model.
        extra_options: More of ``quantize_static``'s ``extra_options``.
        float_outputs: Outputs of quantized ops that stay in floating point.
    """

    model: ONNXModel
    tensors_to_quantize: dict[str, QDQTensorQuantInfo]

    def __init__(
        self,
        model: onnx.ModelProto,
        nodes: list[str],
        op_types: list[str],
        ranges: dict[str, TensorData],
        overrides: dict[str, list[dict[str, Any]]],
        keep_activation_before: Collection[str],
        cache: WeightCache,
        extra_options: Mapping[str, Any] | None = None,
        float_outputs: Collection[str] = (),
    ) -> None:
        super().__init__(
            model,
            per_channel=False,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=op_types,
            extra_options={"TensorQuantOverrides": overrides, **(extra_options or {})},
        )
        self.model = _IndexedModel(self.model.model)
        self._keep_activation_before = keep_activation_before
        self._cache = cache
        self._float_outputs = float_outputs
        self.warnings: list[str] = []

    def write(self) -> onnx.ModelProto:
        """The quantized model, its nodes in topological order; ``warnings`` then holds what should be known of it."""
        with _root_warnings(self.warnings):
            self.quantize_model()
        self.model.topological_sort()
        proto: onnx.ModelProto = self.model.model
        return proto

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self._float_outputs:
            super().quantize_activation_tensor(tensor_name)

    def try_replacing_upstream_output(self, upstream_output_name: str, output_name: str) -> bool:
        if output_name in self._keep_activation_before:
            return False
        replaced: bool = super().try_replacing_upstream_output(upstream_output_name, output_name)
        return replaced

    def _calc_initializer_quant_params(self) -> dict[str, QuantizationParams]:
        wanted = self.tensors_to_quantize
        keys = {name: self._cache_key(name, info) for name, info in wanted.items() if name in self.initializers}
        self.tensors_to_quantize = {
            name: info for name, info in wanted.items() if name in keys and keys[name] not in self._cache.parameters
        }
        computed: dict[str, QuantizationParams] = {}
        for name, info in self.tensors_to_quantize.items():  # one by one: their bytes are then here one by one
            self.tensors_to_quantize = {name: info}
            with self.model.showing(complete_tensor(self.initializers[name])):
                computed.update(super()._calc_initializer_quant_params())
        self.tensors_to_quantize = wanted
        self._cache.parameters.update({keys[name]: _copied(parameters) for name, parameters in computed.items()})
        return {name: _copied(self._cache.parameters[key]) for name, key in keys.items()}

    def _add_qdq_nodes_for_initializer(self, weight_proto: onnx.TensorProto) -> None:
        name = weight_proto.name
        if name in self.quantized_value_map:
            return
        parameters = self.initializer_quant_params[name]
        axis = parameters.get("axis")
        stored = self._make_scale_zp_initializers(name, parameters)
        output = add_dequant_output_suffix(name)
        quantized = self._quantized(weight_proto, parameters, axis)
        self.model.replace_input_of_all_nodes(name, output)
        self.model.add_initializer(quantized)
        self._create_dq_node(
            quantized.name, output, add_dequant_suffix(name), stored.scale.name, stored.zero_point.name, axis=axis
        )
        value = QuantizedValue(
            name, quantized.name, stored.scale.name, stored.zero_point.name, QuantizedValueType.Initializer, axis=axis
        )
        self.quantized_value_map[name] = QDQTensorQuantizedValue(value, None, None)

    def _quantized(
        self, weight: onnx.TensorProto, parameters: QuantizationParams, axis: int | None
    ) -> onnx.TensorProto:
        zero_point, scale = parameters["zero_point"], parameters["scale"]
        key = (weight.name, f"{zero_point.dtype}".encode() + zero_point.tobytes(), scale.tobytes())
        if key not in self._cache.tensors:
            self._cache.tensors[key] = quantize_onnx_initializer(
                complete_tensor(weight), parameters["quant_type"], zero_point, scale, axis
            )
        return self._cache.tensors[key]

    def _cache_key(self, name: str, info: QDQTensorQuantInfo) -> tuple[str, str]:
        override = self.tensor_quant_overrides.get(name, [{}])[0]
        return name, f"{info.tensor_type} {info.axis} {sorted(override.items(), key=str)}"


@contextmanager
def _root_warnings(kept: list[str]) -> Iterator[None]:
    """Keep what ONNX Runtime warns of on the root logger: it belongs to the model, not on the console."""

    def keep(record: logging.LogRecord) -> bool:
        if "onnxruntime" not in record.pathname:
            return True
        kept.append(record.getMessage())
        return False

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def _copied(parameters: QuantizationParams) -> QuantizationParams:
    """A copy that may be changed: ONNX Runtime widens scales in place where a bias would overflow."""
    return QuantizationParams(
        **{key: np.copy(value) if isinstance(value, np.ndarray) else value for key, value in parameters.data.items()}
    )
