"""The statically quantized ops of a tuning config, written in memory by ONNX Runtime's own quantizer.

Which config a tensor gets:

* a weight: that of the op that owns it (of the first such op in graph order, where several share it), but per tensor
  where it has no channel axis for all quantized ops that read it;
* an activation: that of the first quantized op in graph order that reads it, else of the op that writes it. Outputs of
  ops that only pass values on take scale and zero point of their input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData

from distune.backends.onnxruntime.capability import activation_inputs, activation_outputs, weight_input
from distune.backends.onnxruntime.ends import floating_ends
from distune.backends.onnxruntime.graph import FLOAT_TYPES, GraphIndex, UnusedNames, attribute
from distune.backends.onnxruntime.options import OP_KINDS, SAME_RANGE
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.quantizer import CachingQdqQuantizer, WeightCache
from distune.backends.onnxruntime.recipes.propagation import concat_ranges, quantizer_options
from distune.backends.onnxruntime.weights import add_constant
from distune.errors import TrialError
from distune.space.op_config import OpConfig, TensorConfig, TuningConfig

Range = tuple[float, float]

_QUANT_TYPES = {
    "int8": QuantType.QInt8,
    "uint8": QuantType.QUInt8,
    "int16": QuantType.QInt16,
    "uint16": QuantType.QUInt16,
}
_REQUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Op types whose fp32 weight ONNX Runtime's WeightBiasQuantization quantizes again between DQ and Q."""

_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Plan:
    """Which tensors a tuning config quantizes and how.

    Attributes:
        nodes: Names of the ops that are quantized statically, in graph order.
        activations: Config by tensor name.
        weights: Config and channel axis (``None``: per tensor) by tensor name; constant operands of elementwise ops
            included.
        shared: Tensors that take the range of another one, by name.
        options: ``extra_options`` of ONNX Runtime's quantizer.
        float_outputs: Outputs of quantized products that stay in floating point.
    """

    nodes: tuple[str, ...]
    activations: Mapping[str, TensorConfig]
    weights: Mapping[str, tuple[TensorConfig, int | None]]
    shared: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    float_outputs: frozenset[str] = frozenset()


def plan(model: PreparedModel, config: TuningConfig) -> Plan:
    """What the static ops of ``config`` mean for the tensors of ``model``; those of other modes are left alone.

    Raises:
        TrialError: An op that is to be quantized does not exist.
    """
    static: dict[str, OpConfig] = {}
    for name, op in config.ops:
        if op.mode != "static":
            continue
        if name not in model.index.nodes:
            raise TrialError(f"the model has no op {name!r}")
        static[name] = op
    recipes = dict(config.recipes)
    if not recipes.get("scale_propagation_max_pooling", True):
        static = {name: op for name, op in static.items() if model.index.nodes[name].op_type != "MaxPool"}
    in_float, float_outputs = floating_ends(model.proto, model.index, static)
    nodes = [node for node in model.proto.graph.node if node.name in static and node.name not in in_float]
    read: dict[str, TensorConfig] = {}
    written: dict[str, TensorConfig] = {}
    weights: dict[str, tuple[TensorConfig, int | None]] = {}
    for node in nodes:
        op = static[node.name]
        own = weight_input(model.index, node)
        if own is not None and op.weight is not None:
            axis = _channel_axis(model.index, node, own) if op.weight.granularity == "per_channel" else None
            weights.setdefault(own, (op.weight, axis))
        if op.activation is None:
            continue
        for name in activation_inputs(model.index, node):
            read.setdefault(name, op.activation)
        for name in activation_outputs(model.index, node):
            if name not in float_outputs:
                written.setdefault(name, op.activation)
        if OP_KINDS[node.op_type] not in ("weighted", "lookup"):
            for name in node.input:
                if name != own and name in model.index.initializers and model.index.is_float(name):
                    weights.setdefault(name, (op.activation, None))
    names = dict.fromkeys(node.name for node in nodes)
    for name, (weight, axis) in weights.items():
        readers = [reader for reader in model.index.consumers[name] if reader.name in names]
        if any(_channel_axis(model.index, reader, name) != axis for reader in readers):
            weights[name] = (weight, None)
    activations = {**written, **read}
    shared = concat_ranges(model, nodes, activations) if recipes.get("scale_propagation_concat") else {}
    activations.update({name: activations[source] for name, source in shared.items()})
    return Plan(tuple(names), activations, weights, shared, quantizer_options(recipes), float_outputs)


@dataclass(frozen=True)
class Quantized:
    """A quantized model and what the user should know of it.

    Attributes:
        corrected: Gives the constants that corrections changed, as text for a saved tuning config.
    """

    proto: onnx.ModelProto
    warnings: tuple[str, ...] = ()
    corrected: Callable[[], Mapping[str, str]] = dict


def write_qdq(
    model: PreparedModel,
    planned: Plan,
    ranges: Mapping[str, Range],
    cache: WeightCache,
    reduce_range: bool = False,
) -> Quantized:
    """The quantized model of a plan.

    Args:
        ranges: Of every activation of the plan.
        cache: Quantized weights of earlier calls for the same ``model``; filled as a side effect.
        reduce_range: Keep int8 weights within 7 bits (see ``cpu.needs_reduce_range``).

    Raises:
        TrialError: A range is missing, or ONNX Runtime's quantizer refuses the graph.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if not planned.nodes:
        return Quantized(proto)
    missing = sorted(planned.activations.keys() - ranges.keys())
    if missing:
        raise TrialError(f"no calibrated range for tensor {missing[0]!r} ({len(missing)} in all): calibrate the model")
    _separate_shared_constants(proto, model.index, set(planned.nodes))
    kept = {
        name
        for name, config in planned.activations.items()
        if config.scheme == "sym" or not ranges[name][0] <= 0 <= ranges[name][1]
    }
    try:
        quantizer = CachingQdqQuantizer(
            proto,
            nodes=list(planned.nodes),
            op_types=list(OP_KINDS),
            ranges=_tensor_data(model, planned, ranges),
            overrides=_overrides(planned, reduce_range),
            keep_activation_before=kept,
            cache=cache,
            extra_options=planned.options,
            float_outputs=planned.float_outputs,
        )
        quantized = quantizer.write()
        cache.settle()
    except (ValueError, RuntimeError, TypeError, LookupError, AssertionError) as error:
        raise TrialError(f"ONNX Runtime's quantizer cannot apply the tuning config: {error}") from error
    _keep_fallback_in_fp32(quantized, set(planned.nodes))
    return Quantized(quantized, tuple(quantizer.warnings))


def _tensor_data(model: PreparedModel, planned: Plan, ranges: Mapping[str, Range]) -> dict[str, TensorData]:
    out = {
        name: TensorData(lowest=np.float32(ranges[name][0]), highest=np.float32(ranges[name][1]))
        for name in planned.activations
    }
    for name in planned.nodes:
        node = model.index.nodes[name]
        if node.op_type in SAME_RANGE:
            out[node.output[0]] = out[node.input[0]]
    return out


def _overrides(planned: Plan, reduce_range: bool) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for name, config in planned.activations.items():
        out[name] = [{"quant_type": _quant_type(config), "symmetric": config.scheme == "sym"}]
    for name, (config, axis) in planned.weights.items():
        entry: dict[str, Any] = {"quant_type": _quant_type(config), "symmetric": config.scheme == "sym"}
        if axis is not None:
            entry["axis"] = axis
        if reduce_range and config.dtype == "int8":
            entry["reduce_range"] = True
        out[name] = [entry]
    return out


def _quant_type(config: TensorConfig) -> QuantType:
    if config.dtype not in _QUANT_TYPES:
        raise TrialError(f"static quantization has no dtype {config.dtype!r}; it has {', '.join(_QUANT_TYPES)}")
    return _QUANT_TYPES[config.dtype]


def _channel_axis(index: GraphIndex, node: onnx.NodeProto, weight: str) -> int | None:
    """The axis of output channels for ``node``, along which its integer kernel takes a scale each; ``None``: none."""
    rank = len(index.initializers[weight].dims)
    if list(node.input).index(weight) != 1:
        return None
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return 1 if node.op_type in ("Gemm", "MatMul") and rank == 2 else None


def _separate_shared_constants(proto: onnx.ModelProto, index: GraphIndex, quantized: set[str]) -> None:
    """Give ops that stay in fp32 their own copy of constants that a quantized op reads too."""
    unused = UnusedNames(proto)
    copies: dict[str, str] = {}
    for node in proto.graph.node:
        if node.name in quantized:
            continue
        for position, name in enumerate(node.input):
            tensor = index.initializers.get(name)
            if tensor is None or tensor.data_type not in FLOAT_TYPES:
                continue
            if any(consumer.name in quantized for consumer in index.consumers[name]):
                if name not in copies:
                    copies[name] = unused(f"{name}_fp32")
                    proto.graph.initializer.add().CopyFrom(tensor)
                    proto.graph.initializer[-1].name = copies[name]
                node.input[position] = copies[name]


def _keep_fallback_in_fp32(proto: onnx.ModelProto, quantized: set[str]) -> None:
    """Make ops that fell back really run in fp32, in everybody's default session.

    ONNX Runtime's optimizer WeightBiasQuantization quantizes the weight of an fp32 Conv or Gemm again, per tensor, when
    it sits between DequantizeLinear and QuantizeLinear (Relu and Clip before the latter are removed first). There it
    also makes an AveragePool an integer one, which has no dilations, and refuses a graph where it finds them. An
    element-wise ``Max(x, lowest float)`` before that QuantizeLinear changes no value and is not optimised away.
    """
    index, unused = GraphIndex(proto), UnusedNames(proto)
    guarded: dict[str, str] = {}
    for node in list(proto.graph.node):
        requantized = node.op_type in _REQUANTIZED and node.input[1] in index.initializers
        dilated = node.op_type == "AveragePool" and any(item.name == "dilations" for item in node.attribute)
        if node.name in quantized or not (requantized or dilated):
            continue
        source = index.producer.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            continue
        tensor = node.output[0]
        while (consumer := index.only_consumer(tensor)) is not None and consumer.op_type in ("Relu", "Clip"):
            tensor = consumer.output[0]
        readers = [c for c in index.consumers.get(tensor, ()) if c.op_type == "QuantizeLinear"]
        if readers:
            guarded[tensor] = unused(f"{tensor}_fp32")
        for reader in readers:
            reader.input[0] = guarded[tensor]
    if not guarded:
        return
    lowest = add_constant(proto, unused("distune_lowest_float"), np.array(_LOWEST, np.float32))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        proto.graph.node.append(node)
        for tensor in node.output:
            if tensor in guarded:
                guard = onnx.helper.make_node("Max", [tensor, lowest], [guarded[tensor]], unused(f"{tensor}_keep_fp32"))
                proto.graph.node.append(guard)
