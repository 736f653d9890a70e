"""Corrections of a quantized graph: rounding, weight statistics and biases of its static layers.

* ``adaround``: see ``rounding``.
* ``weight_correction``: R. Banner, Y. Nahshan, D. Soudry, "Post Training 4-bit Quantization of Convolutional Networks
  for Rapid-Deployment", NeurIPS 2019 (arXiv:1810.05723), section 4.2: each output channel of the quantized weight gets
  the mean and the variance of the fp32 one. The mean by rounding as few weights as needed the other way, the variance
  by a factor on the scale.
* ``fast_bias_correction``: M. Nagel et al., arXiv:1906.04721, section 4.2: quantized weights shift the mean of the
  output by ``E[(Wq - W) x] = (Wq - W) E[x]``, which is taken off the bias; here ``E[x]`` is that of the calibration
  data (their appendix D), inputs that padding adds left out.

They work on what the quantizer wrote, so that they meet the very integers and scales of the model, in this order.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from distune.backends.channel_statistics import channel_key
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.layers import Layer, constant, layers
from distune.backends.onnxruntime.recipes.rounding import adaptive_rounding, mean_preserving_rounding
from distune.backends.statistics import CalibrationStatistics
from distune.errors import TrialError

CORRECTIONS = ("adaround", "weight_correction", "fast_bias_correction")
"""The recipes of this module."""

_WIDEST_SCALE_FACTOR = 2.0
"""What a factor on a scale may be at most, or its inverse: more is no correction."""


@dataclass(frozen=True)
class Corrections:
    """What was done to a quantized graph.

    Attributes:
        layers: Number of layers that each correction changed, by recipe.
        constants: Bytes of the constants that were replaced, before and after, by name.
    """

    layers: Mapping[str, int]
    constants: Mapping[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]

    @property
    def remarks(self) -> tuple[str, ...]:
        """For the user: what found nothing to do."""
        return tuple(f"recipe {name} found no layer that it could correct" for name, n in self.layers.items() if not n)

    def to_plain(self) -> dict[str, str]:
        """The differences as text, for a saved tuning config; ``restore`` takes them.

        Rounding changes integers by one at most, so that their differences take a fraction of the space.
        """
        return {
            name: base64.b64encode(zlib.compress((after - before).tobytes(), 9)).decode()
            for name, (before, after) in self.constants.items()
        }


RoundingCache = dict[tuple[str, bytes], NDArray[Any]]
"""Integers that ``adaround`` chose, by name of the weight and its scale and zero point."""


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
        chosen = stored.integers
        if "adaround" in done:
            rounded = _adaround(layer, weight, stored, statistics, cache)
            if rounded is not None:
                chosen = rounded
                done["adaround"] += 1
        factor = np.ones((*weight.shape[:2], 1))
        if "weight_correction" in done:
            if "adaround" not in done:
                scale, zero = (each.reshape(-1, 1) for each in stored.parameters(weight.shape))
                flat = weight.reshape(-1, weight.shape[2])
                chosen = mean_preserving_rounding(flat, scale, zero, stored.limits).reshape(weight.shape)
            factor = _variance_factor(weight, stored.real(chosen), per_tensor=stored.scale.ndim == 0)
            done["weight_correction"] += 1
        _store(index, layer, stored, chosen, factor)
        after = stored.real(chosen) * factor
        if "fast_bias_correction" in done:
            done["fast_bias_correction"] += _correct_bias(index, layer, after - weight, statistics)
    return Corrections(done, index.changed)


def restore(proto: onnx.ModelProto, saved: Mapping[str, str]) -> None:
    """Make the corrections of ``Corrections.to_plain`` again on the same quantized graph, in place.

    Raises:
        TrialError: The graph has no such constant.
    """
    index = _Constants(proto)
    for name, text in saved.items():
        difference = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
        before = constant(index, name) if name in index.initializers else np.empty(0)
        if before.nbytes != difference.nbytes:
            raise TrialError(f"the saved config corrects a constant {name!r} that this model does not have")
        after = _bytes(before) + difference
        index.replace(name, after.view(before.dtype).reshape(before.shape))


class _Constants(GraphIndex):
    """The lookups of a quantized graph, with what was replaced in it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__(proto)
        self.changed: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other values of the same type."""
        tensor = self.initializers[name]
        original = constant(self, name)
        before = self.changed[name][0] if name in self.changed else _bytes(original)
        after = np.asarray(values, original.dtype, order="C")
        tensor.CopyFrom(numpy_helper.from_array(after, name))
        self.changed[name] = (before, _bytes(after))


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(values.tobytes(), np.uint8)


@dataclass(frozen=True)
class _Stored:
    """A quantized weight in the graph.

    Attributes:
        name: Of the integers.
        scale_name: Of the scale.
        integers: As [groups, outputs, inputs].
        scale, zero_point: Scalars, or vectors of the outputs.
        limits: Of the integers.
    """

    name: str
    scale_name: str
    integers: NDArray[np.float64]
    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    limits: tuple[int, int]
    dtype: np.dtype[Any]

    def parameters(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scale and zero point of every output, [groups, outputs, 1]."""
        wide = (*shape[:2], 1)
        count = int(np.prod(shape[:2]))
        scale, zero = (np.broadcast_to(each, count).reshape(wide) for each in (self.scale, self.zero_point))
        return scale, zero

    def real(self, integers: NDArray[np.float64]) -> NDArray[np.float64]:
        """What integers stand for."""
        scale, zero = self.parameters(integers.shape)
        return (integers - zero) * scale


def _stored(index: GraphIndex, layer: Layer, reduce_range: bool) -> _Stored | None:
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
        layer.matrix(integers.astype(np.float64)),
        scale.astype(np.float64),
        zero.astype(np.float64),
        limits,
        integers.dtype,
    )


def _limits(dtype: np.dtype[Any], offset: bool, reduce_range: bool) -> tuple[int, int]:
    """As ONNX Runtime's quantizer sets them."""
    if dtype == np.uint8:
        return 0, 255
    if reduce_range:
        return -64, 64
    return (-128, 127) if offset else (-127, 127)


def _adaround(
    layer: Layer, weight: NDArray[np.float64], stored: _Stored, statistics: CalibrationStatistics, cache: RoundingCache
) -> NDArray[np.float64] | None:
    found = [statistics.moments.get(f"{group}:{layer.key}") for group in range(layer.groups)]
    if any(moments is None or not moments.rows for moments in found):
        return None
    key = (layer.weight, stored.scale.tobytes() + stored.zero_point.tobytes())
    if key not in cache:
        scale, zero = stored.parameters(weight.shape)
        groups = [
            adaptive_rounding(weight[g], scale[g], zero[g], stored.limits, moments.moments())
            for g, moments in enumerate(found)
            if moments is not None
        ]
        cache[key] = np.stack(groups).astype(stored.dtype)
    return cache[key].astype(np.float64)


def _variance_factor(
    weight: NDArray[np.float64], quantized: NDArray[np.float64], per_tensor: bool
) -> NDArray[np.float64]:
    """Spread of the weights over that of the quantized ones, by output, [groups, outputs, 1]."""
    axis = None if per_tensor else 2
    spread = [np.std(each, axis=axis, keepdims=True) for each in (weight, quantized)]
    usable = (spread[0] > 0) & (spread[1] > 0)
    factor = np.divide(spread[0], spread[1], out=np.ones_like(spread[0]), where=usable)
    limited = np.clip(factor, 1 / _WIDEST_SCALE_FACTOR, _WIDEST_SCALE_FACTOR)
    return np.asarray(np.broadcast_to(limited, (*weight.shape[:2], 1)))


def _store(
    index: _Constants,
    layer: Layer,
    stored: _Stored,
    integers: NDArray[np.float64],
    factor: NDArray[np.float64],
) -> None:
    if not np.array_equal(integers, stored.integers):
        index.replace(stored.name, layer.weight_of(integers).astype(stored.dtype))
    if np.all(factor == 1):
        return
    scale = stored.scale * (factor.reshape(-1) if stored.scale.ndim else factor.reshape(-1)[0])
    bias = _bias(index, layer)
    index.replace(stored.scale_name, scale.astype(np.float32))
    if bias is not None and bias.op_type == "DequantizeLinear" and index.initializers[bias.input[0]].data_type == 6:
        # The integer kernels take the bias in units of input scale times weight scale.
        old_scale = constant(index, bias.input[1]).astype(np.float64)
        ratio = factor.reshape(-1) if old_scale.ndim else factor.reshape(-1)[0]
        real = constant(index, bias.input[0]) * old_scale
        index.replace(bias.input[1], (old_scale * ratio).astype(np.float32))
        index.replace(bias.input[0], np.rint(real / (old_scale * ratio)).astype(np.int32))


def _correct_bias(
    index: _Constants,
    layer: Layer,
    error: NDArray[np.float64],
    statistics: CalibrationStatistics,
) -> bool:
    """Take the mean output error off the bias; False where there is no bias or nothing is known of the input."""
    seen = statistics.channels.get(channel_key(layer.input, layer.channel_axis))
    if seen is None or not seen.count or not layer.bias:
        return False
    mean = np.repeat(seen.mean.reshape(layer.groups, -1), layer.row_length // (layer.inputs // layer.groups), axis=1)
    shift = np.einsum("goi,gi->go", error, mean).reshape(-1)
    bias = _bias(index, layer)
    if bias is None:
        index.replace(_bias_name(index, layer), constant(index, _bias_name(index, layer)) - shift)
        return True
    integers, scale, zero = (constant(index, name) for name in bias.input[:3])
    real = (integers.astype(np.float64) - zero) * scale - shift
    if integers.dtype == np.int32:
        limit = np.iinfo(np.int32)
        index.replace(bias.input[0], np.clip(np.rint(real / scale), limit.min, limit.max).astype(np.int32))
        return True
    bounds = np.iinfo(integers.dtype)
    low, high = min(0.0, float(real.min())), max(0.0, float(real.max()))
    step = (high - low) / (int(bounds.max) - int(bounds.min)) or 1.0
    offset = np.rint(bounds.min - low / step)
    index.replace(bias.input[1], np.asarray(step, np.float32))
    index.replace(bias.input[2], np.asarray(offset, integers.dtype))
    index.replace(bias.input[0], np.clip(np.rint(real / step) + offset, bounds.min, bounds.max))
    return True


def _bias_name(index: GraphIndex, layer: Layer) -> str:
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


def _bias(index: GraphIndex, layer: Layer) -> onnx.NodeProto | None:
    """The DequantizeLinear of the bias; ``None`` where the bias is in floating point or there is none."""
    return index.producer.get(_bias_name(index, layer)) if layer.bias else None
