"""Recipes that change what is calibrated: what the data say of a rewritten graph, and what has to be collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.channel_statistics import ChannelStatistics, channel_key
from distune.backends.recipes.equalization import Pair
from distune.backends.recipes.layer import Layer
from distune.backends.recipes.smoothing import Factors, Smoothable, factors, from_plain, to_plain
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


def variant_of(config: TuningConfig) -> Variant:
    """The recipes of a config under which its statistics are kept; the same as ``TuningSpace.variant`` says."""
    if not config.quantized_ops:
        return ()
    return tuple((name, value) for name, value in config.recipes if name in VARIANT_RECIPES)


def rewrites(recipes: Variant) -> Variant:
    """Those recipes that rewrite the fp32 graph."""
    return tuple((name, value) for name, value in recipes if name in _REWRITES)


@dataclass(frozen=True)
class Rewriting:
    """How the fp32 graph is rewritten, with what was learned from the data.

    Attributes:
        equalize: Equalize first; linear layers are left alone where the graph is smoothed too, which moves their
            channels by what it saw of them before.
        smooth: Then divide activations by ``factors``.
        folding: Put the division into what comes before where that can be.
        factors: By activation.
        channels: Of the inputs of the layers that are equalized.
        saved: What makes the same ``Rewriting`` again without data, as plain values.
    """

    equalize: bool
    smooth: bool
    folding: bool
    factors: Factors
    channels: Mapping[str, ChannelStatistics]
    saved: Mapping[str, Any] = field(default_factory=dict)


def rewriting(
    variant: Variant,
    statistics: CalibrationStatistics,
    spots: Sequence[Smoothable],
    pairs: Sequence[Pair],
    constant: Callable[[str], NDArray[Any]],
    blocks: Callable[[], Sequence[Sequence[str]]],
) -> Rewriting:
    """How a graph is rewritten for a variant.

    Args:
        statistics: Of the plain graph.
        spots, pairs: What can be smoothed and equalized in it.
        constant: Gives a weight of it.
        blocks: Finds its transformer blocks as names of layers.

    Raises:
        TrialError: Alphas are to be chosen by block, and there is none.
    """
    wanted = dict(variant)
    saved: dict[str, Any] = {}
    alpha = wanted.get("smooth_quant", False)
    found: Factors = {}
    if alpha is not False:
        args = SmoothQuantArgs.from_text(wanted.get("smooth_quant_args", ""))
        together = blocks() if args.do_blockwise else ()
        if args.do_blockwise and not together:
            raise TrialError(
                "smooth_quant_args.auto_alpha_args.do_blockwise: no transformer block was found in the model; "
                "leave it out"
            )
        found = factors(spots, constant, statistics.channels, alpha, args, together)
        saved["smooth_quant"] = to_plain(found)
    channels: dict[str, ChannelStatistics] = {}
    if wanted.get("cross_layer_equalization"):
        keys = (channel_key(pair.second.input, pair.second.channel_axis) for pair in pairs)
        channels = {key: statistics.channels[key] for key in keys if key in statistics.channels}
        saved["cross_layer_equalization"] = {key: [float(v) for v in seen.peak] for key, seen in channels.items()}
    return _rewriting(variant, found, channels, saved)


def restored_rewriting(variant: Variant, saved: Mapping[str, Any]) -> Rewriting:
    """The same from ``Rewriting.saved``, without data."""
    channels = {}
    for key, peaks in saved.get("cross_layer_equalization", {}).items():
        values = np.array(peaks, np.float32)
        none = np.zeros(len(values), np.int64)
        channels[key] = ChannelStatistics(values, values, none, none, 1)
    return _rewriting(variant, from_plain(saved.get("smooth_quant", {})), channels, saved)


def _rewriting(
    variant: Variant, found: Factors, channels: Mapping[str, ChannelStatistics], saved: Mapping[str, Any]
) -> Rewriting:
    wanted = dict(variant)
    return Rewriting(
        equalize=bool(wanted.get("cross_layer_equalization")),
        smooth=wanted.get("smooth_quant", False) is not False,
        folding=SmoothQuantArgs.from_text(wanted.get("smooth_quant_args", "")).folding,
        factors=found,
        channels=channels,
        saved=saved,
    )


class LayerCollector:
    """Collects what recipes need to know of the inputs of layers.

    Args:
        found: The layers.
        moments: Second moments too, for ``adaround``.

    Raises:
        TrialError: ``moments`` are wanted and every layer is too wide for them.
    """

    def __init__(self, found: Iterable[Layer], moments: bool) -> None:
        found = list(found)
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


__all__ = [
    "ROWS",
    "VARIANT_RECIPES",
    "WIDEST",
    "LayerCollector",
    "Rewriting",
    "restored_rewriting",
    "rewrites",
    "rewriting",
    "variant_of",
]
