"""The fp32 graph under recipes that rewrite it before calibration, and what such a graph is calibrated for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from distune.backends.channel_statistics import ChannelStatistics, channel_key
from distune.backends.onnxruntime.blocks import find_blocks
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.quantizer import WeightCache
from distune.backends.onnxruntime.recipes.correction import RoundingCache
from distune.backends.onnxruntime.recipes.equalization import equalize, pairs
from distune.backends.onnxruntime.recipes.layers import Layer, layers
from distune.backends.onnxruntime.recipes.smooth_quant import Factors, factors, from_plain, smooth, to_plain
from distune.backends.statistics import CalibrationStatistics
from distune.errors import TrialError
from distune.space.op_config import TuningConfig
from distune.space.recipes import SmoothQuantArgs
from distune.space.tuning_space import Variant

VARIANT_RECIPES = ("adaround", "cross_layer_equalization", "layer_wise_quant", "smooth_quant", "smooth_quant_args")
"""Recipes that change what is calibrated."""

_REWRITES = ("cross_layer_equalization", "smooth_quant", "smooth_quant_args")

ROWS = 1024
"""Rows of a batch that are taken for second moments, at most; evenly spread."""

WIDEST = 2048
"""Inputs of an output at most for which second moments are kept: 32 MiB."""


TENSORS_AT_ONCE = 8
"""Tensors that ``layer_wise_quant`` collects in one run of the model."""


@dataclass(frozen=True)
class GraphVariant:
    """One graph and what is remembered of quantizing it.

    Attributes:
        model: The graph.
        cache: Quantized weights.
        rounding: Integers that ``adaround`` chose.
        saved: What makes the graph again without data.
    """

    model: PreparedModel
    cache: WeightCache = field(default_factory=WeightCache)
    rounding: RoundingCache = field(default_factory=dict)
    saved: Mapping[str, Any] = field(default_factory=dict)


def variant_of(config: TuningConfig) -> Variant:
    """The recipes of a config under which its statistics are kept; the same as ``TuningSpace.variant`` says."""
    if not config.quantized_ops:
        return ()
    return tuple((name, value) for name, value in config.recipes if name in VARIANT_RECIPES)


def rewrites(recipes: Variant) -> Variant:
    """Those recipes that rewrite the fp32 graph."""
    return tuple((name, value) for name, value in recipes if name in _REWRITES)


def rewritten(model: PreparedModel, variant: Variant, statistics: CalibrationStatistics) -> GraphVariant:
    """The graph of a variant.

    Args:
        statistics: Of the plain graph.
    """
    wanted = dict(variant)
    saved: dict[str, Any] = {}
    alpha = wanted.get("smooth_quant", False)
    found: Factors = {}
    if alpha is not False:
        args = SmoothQuantArgs.from_text(wanted.get("smooth_quant_args", ""))
        found = factors(model, statistics.channels, alpha, args, _blocks(model) if args.do_blockwise else ())
        saved["smooth_quant"] = to_plain(found)
    if wanted.get("cross_layer_equalization"):
        clipped = (pair.second for pair in pairs(model) if pair.activation is not None)
        keys = [channel_key(layer.input, layer.channel_axis) for layer in clipped]
        known = {key: statistics.channels[key].high for key in keys if key in statistics.channels}
        saved["cross_layer_equalization"] = {key: [float(v) for v in high] for key, high in known.items()}
    return _rewritten(model, variant, found, statistics.channels, saved)


def _blocks(model: PreparedModel) -> tuple[tuple[str, ...], ...]:
    """Names of the ops of each transformer block."""
    found = find_blocks(model.proto, model.index, {node.name: node.name for node in model.proto.graph.node})
    if not found:
        raise TrialError(
            "smooth_quant_args.auto_alpha_args.do_blockwise: no transformer block was found in the model; leave it out"
        )
    return found


def restored_variant(model: PreparedModel, variant: Variant, saved: Mapping[str, Any]) -> GraphVariant:
    """The graph of a variant from ``GraphVariant.saved``, without data."""
    channels = {}
    for key, high in saved.get("cross_layer_equalization", {}).items():
        values = np.array(high, np.float32)
        none = np.zeros(len(values), np.int64)
        channels[key] = ChannelStatistics(values, values, none, none, 1)
    return _rewritten(model, variant, from_plain(saved.get("smooth_quant", {})), channels, saved)


def _rewritten(
    model: PreparedModel,
    variant: Variant,
    found: Factors,
    channels: Mapping[str, ChannelStatistics],
    saved: Mapping[str, Any],
) -> GraphVariant:
    wanted = dict(variant)
    if wanted.get("cross_layer_equalization"):
        # Smoothing moves the channels of linear layers by what it saw of them: equalization leaves those alone.
        model = _indexed(model, equalize(model, channels, only_convs=bool(found)))
    if wanted.get("smooth_quant", False) is not False:
        args = SmoothQuantArgs.from_text(wanted.get("smooth_quant_args", ""))
        model = _indexed(model, smooth(model, found, args.folding))
    return GraphVariant(model, saved=saved)


def _indexed(model: PreparedModel, proto: onnx.ModelProto) -> PreparedModel:
    return PreparedModel.of(proto, model.user_types)


class LayerCollector:
    """Collects what recipes need to know of the inputs of layers.

    Args:
        moments: Second moments too, for ``adaround``.

    Raises:
        TrialError: ``moments`` are wanted and every layer is too wide for them.
    """

    def __init__(self, model: PreparedModel, moments: bool) -> None:
        found = list(layers(model))
        self._inputs = dict.fromkeys((layer.input, layer.channel_axis) for layer in found)
        self._moments: dict[str, Layer] = {}
        if moments:
            self._moments = {layer.key: layer for layer in found if layer.row_length <= WIDEST}
            if not self._moments:
                raise TrialError(f"adaround: every layer has more than {WIDEST} inputs an output; leave it out")

    @property
    def tensors(self) -> tuple[str, ...]:
        """What has to be given to ``add``."""
        return tuple(dict.fromkeys(tensor for tensor, _ in self._inputs))

    def add(self, statistics: CalibrationStatistics, values: Mapping[str, NDArray[Any]]) -> None:
        """Count one batch; tensors that are not there are left to another call."""
        for tensor, axis in self._inputs:
            if tensor in values and values[tensor].ndim > 1:
                statistics.add_channels(channel_key(tensor, axis), ChannelStatistics.of(values[tensor], axis))
        for key, layer in self._moments.items():
            if layer.input in values:
                rows = layer.rows(values[layer.input], ROWS)
                statistics.add_moments({f"{group}:{key}": rows[group] for group in range(layer.groups)})
