"""Corrections of a quantized ONNX graph: which constants hold a layer, and how they are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.layers import OnnxLayer, constant, layers
from distune.backends.recipes.correction import (
    CORRECTIONS,
    Bytes,
    CorrectedWeight,
    Corrections,
    RoundingCache,
    StoredWeight,
    bias_shift,
    bytes_of,
    correct_weight,
    corrected_values,
)
from distune.backends.statistics import CalibrationStatistics
from distune.errors import TrialError


def correct(
    proto: onnx.ModelProto,
    model: PreparedModel,
    recipes: Mapping[str, Any],
    statistics: CalibrationStatistics,
    cache: RoundingCache,
    reduce_range: bool = False,
) -> Corrections:
    """Apply the corrections among ``recipes`` to the static layers of a quantized graph, in place.

    Args:
        proto: As ``qdq.write_qdq`` makes it from ``model``.
        statistics: Of ``model``, with channels, and moments where ``adaround`` is among the recipes.
        cache: Rounding that is known already; filled as a side effect.
        reduce_range: int8 weights are within 7 bits (see ``cpu.needs_reduce_range``).

    Returns:
        What was done; nothing where none of them is among ``recipes``.
    """
    done = dict.fromkeys((name for name in CORRECTIONS if recipes.get(name)), 0)
    if not done:
        return Corrections({}, {})
    index = _Constants(proto)
    for layer in layers(model):
        stored = _stored(index, layer, reduce_range)
        if stored is None:
            continue
        weight = layer.matrix(constant(model.index, layer.weight).astype(np.float64))
        corrected = correct_weight(layer, weight, stored.weight, done, statistics, cache)
        for name in corrected.done:
            done[name] += 1
        _store(index, layer, stored, corrected)
        if "fast_bias_correction" in done:
            shift = bias_shift(layer, corrected.error, statistics)
            if shift is not None:
                _shift_bias(index, layer, shift)
                done["fast_bias_correction"] += 1
    return Corrections(done, index.changed)


def restore(proto: onnx.ModelProto, saved: Mapping[str, str]) -> None:
    """Make the corrections of ``Corrections.to_plain`` again on the same quantized graph, in place.

    Raises:
        TrialError: The graph has no such constant.
    """
    index = _Constants(proto)
    for name, text in saved.items():
        if name not in index.initializers:
            raise TrialError(f"the saved config corrects a constant {name!r} that this model does not have")
        index.replace(name, corrected_values(name, constant(index, name), text))


class _Constants(GraphIndex):
    """The lookups of a quantized graph, with what was replaced in it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__(proto)
        self.changed: dict[str, tuple[Bytes, Bytes]] = {}

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other values of the same type."""
        tensor = self.initializers[name]
        original = constant(self, name)
        before = self.changed[name][0] if name in self.changed else bytes_of(original)
        after = np.asarray(values, original.dtype, order="C")
        tensor.CopyFrom(numpy_helper.from_array(after, name))
        self.changed[name] = (before, bytes_of(after))


@dataclass(frozen=True)
class _Stored:
    """A quantized weight in the graph: names of its integers and its scale, and what they hold."""

    name: str
    scale_name: str
    weight: StoredWeight


def _stored(index: GraphIndex, layer: OnnxLayer, reduce_range: bool) -> _Stored | None:
    """The integers of a layer; ``None`` where it was not quantized statically, or shares them."""
    node = index.nodes.get(layer.name)
    dequantize = None if node is None else index.producer.get(node.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in index.initializers:
        return None
    if len(index.consumers[dequantize.input[0]]) > 1 or len(index.consumers[dequantize.output[0]]) > 1:
        return None
    if len(index.consumers[dequantize.input[1]]) > 1:
        return None
    integers, scale, zero = (constant(index, name) for name in dequantize.input[:3])
    if integers.dtype not in (np.int8, np.uint8):
        return None
    limits = _limits(integers.dtype, bool(zero.any()), reduce_range)
    return _Stored(
        dequantize.input[0],
        dequantize.input[1],
        StoredWeight(
            layer.matrix(integers.astype(np.float64)),
            scale.astype(np.float64),
            zero.astype(np.float64),
            limits,
            integers.dtype,
        ),
    )


def _limits(dtype: np.dtype[Any], offset: bool, reduce_range: bool) -> tuple[int, int]:
    """As ONNX Runtime's quantizer sets them."""
    if dtype == np.uint8:
        return 0, 255
    if reduce_range:
        return -64, 64
    return (-128, 127) if offset else (-127, 127)


def _store(index: _Constants, layer: OnnxLayer, stored: _Stored, corrected: CorrectedWeight) -> None:
    weight, factor = stored.weight, corrected.factor
    if not np.array_equal(corrected.integers, weight.integers):
        index.replace(stored.name, layer.weight_of(corrected.integers).astype(weight.dtype))
    if np.all(factor == 1):
        return
    scale = weight.scale * (factor.reshape(-1) if weight.scale.ndim else factor.reshape(-1)[0])
    bias = _bias(index, layer)
    index.replace(stored.scale_name, scale.astype(np.float32))
    if bias is not None and bias.op_type == "DequantizeLinear" and index.initializers[bias.input[0]].data_type == 6:
        # The integer kernels take the bias in units of input scale times weight scale.
        old_scale = constant(index, bias.input[1]).astype(np.float64)
        ratio = factor.reshape(-1) if old_scale.ndim else factor.reshape(-1)[0]
        real = constant(index, bias.input[0]) * old_scale
        index.replace(bias.input[1], (old_scale * ratio).astype(np.float32))
        index.replace(bias.input[0], np.rint(real / (old_scale * ratio)).astype(np.int32))


def _shift_bias(index: _Constants, layer: OnnxLayer, shift: NDArray[np.float64]) -> None:
    """Take ``shift`` off the bias."""
    bias = _bias(index, layer)
    if bias is None:
        index.replace(_bias_name(index, layer), constant(index, _bias_name(index, layer)) - shift)
        return
    integers, scale, zero = (constant(index, name) for name in bias.input[:3])
    real = (integers.astype(np.float64) - zero) * scale - shift
    if integers.dtype == np.int32:
        limit = np.iinfo(np.int32)
        index.replace(bias.input[0], np.clip(np.rint(real / scale), limit.min, limit.max).astype(np.int32))
        return
    bounds = np.iinfo(integers.dtype)
    low, high = min(0.0, float(real.min())), max(0.0, float(real.max()))
    step = (high - low) / (int(bounds.max) - int(bounds.min)) or 1.0
    offset = np.rint(bounds.min - low / step)
    index.replace(bias.input[1], np.asarray(step, np.float32))
    index.replace(bias.input[2], np.asarray(offset, integers.dtype))
    index.replace(bias.input[0], np.clip(np.rint(real / step) + offset, bounds.min, bounds.max))


def _bias_name(index: GraphIndex, layer: OnnxLayer) -> str:
    """Where the bias enters the quantized graph: the input of the node, or of the Add behind it."""
    if not layer.adder:
        return str(index.nodes[layer.name].input[2])
    add = index.nodes[layer.adder]
    return next(str(name) for name in add.input if _is_constant(index, name))


def _is_constant(index: GraphIndex, name: str) -> bool:
    producer = index.producer.get(name)
    return name in index.initializers or (
        producer is not None and producer.op_type == "DequantizeLinear" and producer.input[0] in index.initializers
    )


def _bias(index: GraphIndex, layer: OnnxLayer) -> onnx.NodeProto | None:
    """The DequantizeLinear of the bias; ``None`` where the bias is in floating point or there is none."""
    return index.producer.get(_bias_name(index, layer)) if layer.bias else None


__all__ = ["CORRECTIONS", "Corrections", "correct", "restore"]
