"""Corrections of a quantized model: rounding, weight statistics and biases of its static layers.

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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.channel_statistics import channel_key
from distune.backends.recipes.layer import Layer
from distune.backends.recipes.rounding import adaptive_rounding, mean_preserving_rounding
from distune.backends.statistics import CalibrationStatistics
from distune.errors import TrialError

CORRECTIONS = ("adaround", "weight_correction", "fast_bias_correction")
"""The recipes of this module."""

_WIDEST_SCALE_FACTOR = 2.0
"""What a factor on a scale may be at most, or its inverse: more is no correction."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Corrections:
    """What was done to a quantized model.

    Attributes:
        layers: Number of layers that each correction changed, by recipe.
        constants: Bytes of the constants that were replaced, before and after, by name.
    """

    layers: Mapping[str, int]
    constants: Mapping[str, tuple[Bytes, Bytes]]

    @property
    def remarks(self) -> tuple[str, ...]:
        """For the user: what found nothing to do."""
        return tuple(f"recipe {name} found no layer that it could correct" for name, n in self.layers.items() if not n)

    def to_plain(self) -> dict[str, str]:
        """The differences as text, for a saved tuning config; ``corrected_values`` takes them.

        Rounding changes integers by one at most, so that their differences take a fraction of the space.
        """
        return {
            name: base64.b64encode(zlib.compress((after - before).tobytes(), 9)).decode()
            for name, (before, after) in self.constants.items()
        }


def corrected_values(name: str, before: NDArray[Any], text: str) -> NDArray[Any]:
    """A constant as it was corrected, from what it is without and the text that ``Corrections.to_plain`` gave for it.

    Raises:
        TrialError: The constant has another size.
    """
    difference = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    if before.nbytes != difference.nbytes:
        raise TrialError(f"the saved config corrects a constant {name!r} that this model does not have")
    after = bytes_of(before) + difference
    return np.asarray(after.view(before.dtype).reshape(before.shape))


def bytes_of(values: NDArray[Any]) -> Bytes:
    """The bytes of an array."""
    return np.frombuffer(values.tobytes(), np.uint8)


RoundingCache = dict[tuple[str, bytes, bytes, tuple[int, int], str], NDArray[Any]]
"""Integers that ``adaround`` chose for the weights of one graph, by all that they depend on: name of the weight, its
scale and zero point, digest of the moments of its input, limits and dtype of the integers."""


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight.

    Attributes:
        integers: As [groups, outputs, inputs].
        scale, zero_point: Scalars, or vectors of the outputs.
        limits: Of the integers.
        dtype: In which they are stored.
    """

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


@dataclass(frozen=True)
class CorrectedWeight:
    """What becomes of a quantized weight.

    Attributes:
        integers: As [groups, outputs, inputs].
        factor: On the scale of every output, [groups, outputs, 1].
        error: What the weight now stands for less what it was in fp32, as ``integers``.
        done: The recipes that were applied to it.
    """

    integers: NDArray[np.float64]
    factor: NDArray[np.float64]
    error: NDArray[np.float64]
    done: frozenset[str]


def correct_weight(
    layer: Layer,
    weight: NDArray[np.float64],
    stored: StoredWeight,
    recipes: Collection[str],
    statistics: CalibrationStatistics,
    cache: RoundingCache,
) -> CorrectedWeight:
    """Apply those of ``recipes`` that change weights.

    Args:
        weight: In fp32, as [groups, outputs, inputs].
        recipes: Names of those that are on.
        statistics: Of the model, with moments where ``adaround`` is among the recipes.
        cache: Rounding that is known already; filled as a side effect.
    """
    chosen, done = stored.integers, set()
    if "adaround" in recipes:
        rounded = _adaround(layer, weight, stored, statistics, cache)
        if rounded is not None:
            chosen = rounded
            done.add("adaround")
    factor = np.ones((*weight.shape[:2], 1))
    if "weight_correction" in recipes:
        if "adaround" not in recipes:
            scale, zero = (each.reshape(-1, 1) for each in stored.parameters(weight.shape))
            flat = weight.reshape(-1, weight.shape[2])
            chosen = mean_preserving_rounding(flat, scale, zero, stored.limits).reshape(weight.shape)
        factor = _variance_factor(weight, stored.real(chosen), per_tensor=stored.scale.ndim == 0)
        done.add("weight_correction")
    return CorrectedWeight(chosen, factor, stored.real(chosen) * factor - weight, frozenset(done))


def bias_shift(
    layer: Layer, error: NDArray[np.float64], statistics: CalibrationStatistics
) -> NDArray[np.float64] | None:
    """The mean of the outputs' errors, [outputs], to be taken off the bias; ``None`` where there is no bias or nothing
    is known of the input.

    Args:
        error: Of the weight, ``CorrectedWeight.error``.
        statistics: Of the model, with channels.
    """
    seen = statistics.channels.get(channel_key(layer.input, layer.channel_axis))
    if seen is None or not seen.count or not layer.bias:
        return None
    mean = np.repeat(seen.mean.reshape(layer.groups, -1), layer.row_length // (layer.inputs // layer.groups), axis=1)
    return np.asarray(np.einsum("goi,gi->go", error, mean).reshape(-1))


def _adaround(
    layer: Layer,
    weight: NDArray[np.float64],
    stored: StoredWeight,
    statistics: CalibrationStatistics,
    cache: RoundingCache,
) -> NDArray[np.float64] | None:
    found = [statistics.moments.get(f"{group}:{layer.key}") for group in range(layer.groups)]
    known = [moments for moments in found if moments is not None and moments.rows]
    if len(known) < len(found):
        return None
    parameters = stored.scale.tobytes() + stored.zero_point.tobytes()
    seen = b"".join(moments.digest for moments in known)
    key = (layer.weight, parameters, seen, stored.limits, stored.dtype.str)
    if key not in cache:
        scale, zero = stored.parameters(weight.shape)
        groups = [
            adaptive_rounding(weight[g], scale[g], zero[g], stored.limits, moments.moments())
            for g, moments in enumerate(known)
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


__all__ = [
    "CORRECTIONS",
    "CorrectedWeight",
    "Corrections",
    "RoundingCache",
    "StoredWeight",
    "bias_shift",
    "bytes_of",
    "correct_weight",
    "corrected_values",
]
