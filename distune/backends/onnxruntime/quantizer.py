"""ONNX Runtime's ``QDQQuantizer``, made fit for writing thousands of variants of one model.

What would be computed again for every variant is remembered: scales, zero points and integers of weights and biases
that were quantized the same way before (it loops over channels in Python), and where in the graph something is
(``indexed_model``). So a variant costs what it differs in from those before it. The numbers are its own, except that

* the range before a Relu or Clip is the one that is given: it would take theirs, though what they cut off may be an
  output of the graph or read inside another graph;
* a Relu or Clip, or an op's output in floating point, stays where it is told to;
* names of scales, zero points and integers are longer where the fp32 graph has them: it would take what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import (
    QDQBiasQuantInfo,
    QDQQuantizer,
    QDQScaleZpInitializers,
    QDQTensorQuantInfo,
    QDQTensorQuantizedValue,
    QDQTensorQuantParams,
    QuantizationParams,
)
from onnxruntime.quantization.quant_utils import (
    TENSOR_NAME_QUANT_SUFFIX,
    QuantizedValue,
    QuantizedValueType,
    add_dequant_output_suffix,
    add_dequant_suffix,
    quantize_onnx_initializer,
)

from distune.backends.onnxruntime.graph import names_in
from distune.backends.onnxruntime.indexed_model import IndexedModel
from distune.backends.onnxruntime.shared import LightModel, complete_tensor, is_light


@dataclass
class WeightCache:
    """What the variants of one model share: quantized weights and biases, and how they were arrived at.

    Attributes:
        parameters: Scale, zero point and type by tensor name and how it is quantized.
        tensors: Integers by tensor name, zero points, scales and axis.
        widened: Whether scales of a weight are too small for its bias, and those that are not; by weight, bias, and
            scales of input and weight.
        biases: Integers, scale and zero point of a bias, and what else is known of it; by its name, and scales of input
            and weight.
        scales: Scale and zero point as constants, by tensor name and their values.
    """

    parameters: dict[tuple[str, str], QuantizationParams] = field(default_factory=dict)
    tensors: dict[tuple[Any, ...], onnx.TensorProto] = field(default_factory=dict)
    widened: dict[tuple[Any, ...], tuple[bool, NDArray[Any] | None]] = field(default_factory=dict)
    biases: dict[tuple[Any, ...], tuple[tuple[onnx.TensorProto, ...], tuple[Any, ...]]] = field(default_factory=dict)
    scales: dict[tuple[Any, ...], QDQScaleZpInitializers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._files: list[LightModel] = []

    def settle(self) -> None:
        """Move larger weights that were quantized since the last call to a file, from which every variant maps them."""
        new = {key: tensor for key, tensor in self.tensors.items() if not is_light(tensor)}
        constants = onnx.ModelProto()
        constants.graph.initializer.extend(new.values())
        for number, tensor in enumerate(constants.graph.initializer):
            tensor.name = str(number)  # one weight quantized in two ways has one name
        light = LightModel(constants, shared=True)
        if light.folder:
            self._files.append(light)
            for (key, before), tensor in zip(new.items(), light.proto.graph.initializer, strict=True):
                tensor.name = before.name
                self.tensors[key] = tensor

    def clear(self) -> None:
        """Forget everything."""
        self._files.clear()
        for kept in (self.parameters, self.tensors, self.widened, self.biases, self.scales):
            kept.clear()


class CachingQdqQuantizer(QDQQuantizer):  # type: ignore[misc]
    """Writes one quantized variant of a model.

    Args:
        model: Changed in place.
        nodes: Names of the nodes to quantize.
        op_types: Every op type that may be quantized.
        ranges: Range by activation.
        overrides: ``TensorQuantOverrides`` as ``quantize_static`` documents them.
        keep_activation_before: Tensors before which Relu and Clip must stay: their integers reach to values that are
            cut off, so that saturation does not do that work.
        cache: Shared by all variants of one model.
        extra_options: More of ``quantize_static``'s ``extra_options``.
        float_outputs: Outputs of quantized ops that stay in floating point.
    """

    model: IndexedModel
    tensors_to_quantize: dict[str, QDQTensorQuantInfo]
    bias_to_quantize: dict[str, QDQBiasQuantInfo]

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
        self._names = frozenset(names_in(model.graph))
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

    def calc_graph_quant_params(self) -> dict[str, QDQTensorQuantParams]:
        self.model = IndexedModel(self.model.model)  # the first to ask it for anything: the constructor calls this
        found: dict[str, QDQTensorQuantParams] = super().calc_graph_quant_params()
        return found

    def adjust_tensor_ranges(self) -> None:
        for node in self.model.nodes():
            if node.op_type == "Softmax" and self.should_quantize_node(node):
                self.tensors_range[node.output[0]] = TensorData(lowest=np.float32(0), highest=np.float32(1))

    # ------------------------------------------------------------------- one constant is asked for: show no others

    def _is_tensor_quantizable(self, tensor_name: str) -> bool:
        with self.model.showing(tensor_name):
            return bool(super()._is_tensor_quantizable(tensor_name))

    def _get_tensor_type(self, tensor_name: str) -> int | None:
        with self.model.showing(tensor_name):
            found: int | None = super()._get_tensor_type(tensor_name)
        return found

    def is_input_a_initializer(self, input_name: str) -> bool:
        with self.model.showing(input_name):
            return bool(super().is_input_a_initializer(input_name))

    def is_valid_quantize_weight(self, weight_name: str) -> bool:
        with self.model.showing(weight_name):
            return bool(super().is_valid_quantize_weight(weight_name))

    def quantize_weight_tensor_per_channel(self, tensor_name: str, axis: int) -> None:
        with self.model.showing(tensor_name):
            super().quantize_weight_tensor_per_channel(tensor_name, axis)

    def quantize_bias_tensor(
        self, node_name: str, bias_name: str, input_name: str, weight_name: str, beta: float = 1.0
    ) -> None:
        with self.model.showing(bias_name):
            super().quantize_bias_tensor(node_name, bias_name, input_name, weight_name, beta)

    def _get_tensor_quantization_scale(self, tensor_name: str, consumer_node_name: str) -> NDArray[Any] | None:
        value = self.quantized_value_map.get(tensor_name)
        scale: NDArray[Any] | None
        if value is None:
            scale = super()._get_tensor_quantization_scale(tensor_name, consumer_node_name)
        else:
            with self.model.showing(value.get_for_consumer(consumer_node_name).scale_name):
                scale = super()._get_tensor_quantization_scale(tensor_name, consumer_node_name)
        return scale

    def _quantize_normal_tensors(self) -> None:
        left: dict[str, QDQTensorQuantInfo] = {}
        for name, info in self.tensors_to_quantize.items():
            self.tensors_to_quantize = {name: info}
            with self.model.showing(name):
                super()._quantize_normal_tensors()
            left.update(self.tensors_to_quantize)
        self.tensors_to_quantize = left

    def _adjust_weight_quant_params_for_bias_tensors(self) -> None:
        for name in self._biases_one_by_one():
            with self.model.showing(name):
                super()._adjust_weight_quant_params_for_bias_tensors()

    def _quantize_bias_tensors(self) -> None:
        for name in self._biases_one_by_one():
            with self.model.showing(name):
                super()._quantize_bias_tensors()

    def _biases_one_by_one(self) -> Iterator[str]:
        biases = self.bias_to_quantize
        for name, info in biases.items():
            self.bias_to_quantize = {name: info}
            yield name
        self.bias_to_quantize = biases

    # --------------------------------------------------------------------------------- computed before: remembered

    def _adjust_weight_scale_for_int32_bias(
        self,
        input_scale: NDArray[Any],
        weight_scale: NDArray[Any],
        weight_name: str,
        bias_tp: onnx.TensorProto,
        is_per_channel: bool,
    ) -> tuple[bool, NDArray[Any] | None]:
        key = (weight_name, bias_tp.name, _exactly(input_scale), _exactly(weight_scale), is_per_channel)
        if key not in self._cache.widened:
            updated, scale = super()._adjust_weight_scale_for_int32_bias(
                input_scale, np.copy(weight_scale), weight_name, bias_tp, is_per_channel
            )
            self._cache.widened[key] = updated, scale
        updated, scale = self._cache.widened[key]
        return updated, None if scale is None else np.copy(scale)

    def quantize_bias_static_impl(
        self, bias_name: str, input_scale: NDArray[Any], weight_scale: NDArray[Any], beta: float = 1.0
    ) -> tuple[Any, ...]:
        key = (bias_name, _exactly(input_scale), _exactly(weight_scale), beta)
        if key in self._cache.biases:
            constants, found = self._cache.biases[key]
            self.model.initializer_extend(constants)
            return found
        said, before = len(self.warnings), len(self.model.model.graph.initializer)
        found = tuple(super().quantize_bias_static_impl(bias_name, input_scale, weight_scale, beta))
        added = tuple(map(_copied_tensor, self.model.model.graph.initializer[before:]))
        if any(tensor.name in self._names for tensor in added):
            found = (*map(self._unused, found[:3]), *found[3:])
            del self.model.model.graph.initializer[before:]
            for tensor in added:
                tensor.name = self._unused(tensor.name)
            self.model.initializer_extend(added)
        if len(self.warnings) == said:  # what there is to be said of it has to be said each time
            self._cache.biases[key] = added, found
        return found

    def _make_scale_zp_initializers(
        self, param_name: str, quant_params: QuantizationParams, init_name_suffix: str = ""
    ) -> QDQScaleZpInitializers:
        while {f"{param_name}_scale{init_name_suffix}", f"{param_name}_zero_point{init_name_suffix}"} & self._names:
            init_name_suffix += "_"
        scale, zero_point, kind = quant_params["scale"], quant_params["zero_point"], quant_params["quant_type"]
        key = (param_name, init_name_suffix, _exactly(scale), _exactly(zero_point), kind, quant_params.get("axis"))
        if key not in self._cache.scales:
            self._cache.scales[key] = super()._make_scale_zp_initializers(param_name, quant_params, init_name_suffix)
        made = self._cache.scales[key]
        self.model.add_initializer(made.zero_point)
        self.model.add_initializer(made.scale)
        return made

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
        key = (weight.name, _exactly(zero_point), _exactly(scale), axis)
        if key not in self._cache.tensors:
            name = self._unused(f"{weight.name}{TENSOR_NAME_QUANT_SUFFIX}")
            self._cache.tensors[key] = quantize_onnx_initializer(
                complete_tensor(weight), parameters["quant_type"], zero_point, scale, axis, name
            )
        return self._cache.tensors[key]

    def _unused(self, name: str) -> str:
        """``name``, or a longer one where the fp32 graph has it; the same for each variant."""
        while name in self._names:
            name += "_"
        return name

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


def _exactly(values: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(values)
    return array.dtype.str, array.shape, array.tobytes()


def _copied_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _copied(parameters: QuantizationParams) -> QuantizationParams:
    """A copy that may be changed: ONNX Runtime widens scales in place where a bias would overflow."""
    return QuantizationParams(
        **{key: np.copy(value) if isinstance(value, np.ndarray) else value for key, value in parameters.data.items()}
    )
