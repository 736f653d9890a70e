"""The ONNX graph under recipes that rewrite it before calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx

from distune.backends.onnxruntime.blocks import find_blocks
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.quantizer import WeightCache
from distune.backends.onnxruntime.recipes.equalization import equalize, pairs
from distune.backends.onnxruntime.recipes.layers import constant
from distune.backends.onnxruntime.recipes.smooth_quant import smooth, smoothable
from distune.backends.recipes.correction import RoundingCache
from distune.backends.recipes.variants import Rewriting, restored_rewriting, rewriting
from distune.backends.statistics import CalibrationStatistics
from distune.space.tuning_space import Variant

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


def rewritten(model: PreparedModel, variant: Variant, statistics: CalibrationStatistics) -> GraphVariant:
    """The graph of a variant.

    Args:
        statistics: Of the plain graph.
    """
    names = {node.name: node.name for node in model.proto.graph.node}
    values = partial(constant, model.index)
    blocks = partial(find_blocks, model.proto, model.index, names)
    return _rewritten(model, rewriting(variant, statistics, smoothable(model), pairs(model), values, blocks))


def restored_variant(model: PreparedModel, variant: Variant, saved: Mapping[str, Any]) -> GraphVariant:
    """The graph of a variant from ``GraphVariant.saved``, without data."""
    return _rewritten(model, restored_rewriting(variant, saved))


def _rewritten(model: PreparedModel, how: Rewriting) -> GraphVariant:
    if how.equalize:
        model = _indexed(model, equalize(model, how.channels, only_convs=bool(how.factors)))
    if how.smooth:
        model = _indexed(model, smooth(model, how.factors, how.folding))
    return GraphVariant(model, saved=how.saved)


def _indexed(model: PreparedModel, proto: onnx.ModelProto) -> PreparedModel:
    return PreparedModel.of(proto, model.user_types)
