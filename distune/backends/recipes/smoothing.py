"""SmoothQuant: outliers of an activation's channels are moved into the weights behind it.

G. Xiao, J. Lin, M. Seznec, H. Wu, J. Demouth, S. Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization
for Large Language Models", ICML 2023 (arXiv:2211.10438), equation 4: channel ``j`` of the activation is divided by
``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` and the weights of that channel are multiplied by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distune.backends.channel_statistics import ChannelStatistics, channel_key
from distune.backends.recipes.layer import Layer
from distune.space.recipes import SmoothQuantArgs

_SMALLEST = 1e-5
"""Lower bound of channel maxima and factors, as in the authors' code."""

_LEVELS = 255

Factors = dict[str, NDArray[np.float32]]
"""What each channel of a tensor is divided by, by tensor name."""


@dataclass(frozen=True)
class Smoothable:
    """An activation and the layers that multiply it.

    Attributes:
        tensor: Name of the activation.
        members: The matrix products that read it.
        alone: Nobody else reads it.
    """

    tensor: str
    members: tuple[Layer, ...]
    alone: bool


def factors(
    spots: Sequence[Smoothable],
    constant: Callable[[str], NDArray[np.float32]],
    channels: Mapping[str, ChannelStatistics],
    alpha: float | str,
    args: SmoothQuantArgs,
    blocks: Sequence[Sequence[str]] = (),
) -> Factors:
    """The smoothing factors of every activation that was calibrated.

    Args:
        spots: In graph order.
        constant: Gives the weight of a name.
        channels: Of the activations, by ``channel_key``.
        alpha: 0 to 1, or ``auto``: each activation's own, by ``expected_error``.
        blocks: Names of layers that share the alpha that ``auto`` chooses: the one with the smallest mean error.
    """
    by_tensor = {spot.tensor: spot for spot in spots}
    known = {tensor: channels.get(channel_key(tensor, -1)) for tensor in by_tensor}
    seen = {tensor: found for tensor, found in known.items() if found is not None and found.count}
    weights = {tensor: [constant(layer.weight) for layer in by_tensor[tensor].members] for tensor in seen}
    alphas = dict.fromkeys(seen, 0.0 if alpha == "auto" else float(alpha))
    if alpha == "auto":
        losses = {tensor: alpha_losses(by_tensor[tensor], seen[tensor], weights[tensor], args) for tensor in seen}
        for together in _sharing([by_tensor[tensor] for tensor in seen], blocks):
            shared = {each: float(np.mean([losses[tensor][each] for tensor in together])) for each in args.alphas}
            alphas.update(dict.fromkeys(together, _least(shared, args.default_alpha)))
    return {t: _factors(by_tensor[t], seen[t], weights[t], alphas[t], args) for t in seen}


def _sharing(spots: Sequence[Smoothable], blocks: Sequence[Sequence[str]]) -> list[list[str]]:
    """Tensors that share an alpha: those that layers of one block read; each of the others is alone."""
    number = {name: index for index, block in enumerate(blocks) for name in block}
    sharing: dict[int, list[str]] = {}
    for index, spot in enumerate(spots):
        own = {number[layer.name] for layer in spot.members if layer.name in number}
        sharing.setdefault(min(own) if own else -1 - index, []).append(spot.tensor)
    return list(sharing.values())


def best_alpha(
    spot: Smoothable, seen: ChannelStatistics, weights: list[NDArray[np.float32]], args: SmoothQuantArgs
) -> float:
    """The alpha of the grid with the smallest expected output error; of equals the one nearest to the default."""
    return _least(alpha_losses(spot, seen, weights, args), args.default_alpha)


def _least(losses: Mapping[float, float], default: float) -> float:
    return min(losses, key=lambda alpha: (losses[alpha], abs(alpha - default)))


def alpha_losses(
    spot: Smoothable, seen: ChannelStatistics, weights: list[NDArray[np.float32]], args: SmoothQuantArgs
) -> dict[float, float]:
    """Expected output error by alpha of the grid, joined over the layers that read the activation."""
    join = getattr(np, args.shared_criterion)
    return {
        alpha: float(
            join(
                [
                    expected_error(layer, weight, seen, _factors(spot, seen, weights, alpha, args))
                    for layer, weight in zip(spot.members, weights, strict=True)
                ]
            )
        )
        for alpha in args.alphas
    }


def expected_error(layer: Layer, weight: NDArray[np.float32], seen: ChannelStatistics, s: NDArray[np.float32]) -> float:
    """Expected squared error of a layer's output in 8 bits, as a share of the output's power.

    The error of each rounded weight meets the mean square of its input channel; rounding the activation, 8 bits over
    its whole range, adds uniform noise of ``step**2 / 12`` a value. Both are taken to be independent between channels.
    """
    rows = layer.matrix(weight)[0].astype(np.float64)
    smoothed = rows * s
    step = np.abs(smoothed).max(1, keepdims=True) / 127
    step[step == 0] = 1
    weight_error = np.rint(smoothed / step) * step - smoothed
    mean_square = seen.mean_square / np.square(s, dtype=np.float64)
    low, high = min(0.0, float((seen.low / s).min())), max(0.0, float((seen.high / s).max()))
    noise = ((high - low) / _LEVELS) ** 2 / 12
    error = float((np.square(weight_error) @ mean_square).sum() + noise * np.square(smoothed).sum())
    power = float((np.square(rows) @ seen.mean_square).sum())
    return error / power if power else error


def _factors(
    spot: Smoothable,
    seen: ChannelStatistics,
    weights: list[NDArray[np.float32]],
    alpha: float,
    args: SmoothQuantArgs,
) -> NDArray[np.float32]:
    peaks = [layer.input_peaks(weight) for layer, weight in zip(spot.members, weights, strict=True)]
    weight_peak = np.max(peaks, axis=0).astype(np.float64)
    if args.weight_clip:
        weight_peak = np.maximum(weight_peak, _SMALLEST)
    input_peak = np.maximum(seen.peak.astype(np.float64), _SMALLEST)
    unused = weight_peak <= 0
    s = input_peak**alpha / np.where(unused, 1.0, weight_peak) ** (1 - alpha)
    s = np.where(unused, 1.0, np.maximum(s, _SMALLEST))
    return s.astype(np.float32)


def to_plain(found: Factors) -> dict[str, list[float]]:
    """Plain values, for a saved tuning config; float32 survives it exactly."""
    return {tensor: [float(value) for value in values] for tensor, values in found.items()}


def from_plain(saved: Mapping[str, list[float]]) -> Factors:
    """Inverse of ``to_plain``."""
    return {tensor: np.array(values, np.float32) for tensor, values in saved.items()}


__all__ = [
    "Factors",
    "Smoothable",
    "alpha_losses",
    "best_alpha",
    "expected_error",
    "factors",
    "from_plain",
    "to_plain",
]
