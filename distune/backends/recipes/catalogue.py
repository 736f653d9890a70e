"""The recipes of this room as a model offers them: none of them is tuned by default."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from distune.backends.recipes.equalization import Pair
from distune.backends.recipes.layer import Layer
from distune.backends.recipes.smoothing import Smoothable
from distune.space.capability import Recipe

ON_OFF = (False,)
"""Choices of what is off by default and tuned only where the user gives a list: not cheap, or not harmless."""


def shared_recipes(
    spots: Collection[Smoothable], pairs: Collection[Pair], layers: Collection[Layer]
) -> Iterator[Recipe]:
    """What can be done to a model, and to its quantized form.

    Args:
        spots, pairs, layers: Of the model: what can be smoothed, equalized and corrected.
    """
    if spots:
        yield Recipe(
            "smooth_quant",
            False,
            ON_OFF,
            variant=True,
            modes=("static", "dynamic"),
            leads=True,
        )
        yield Recipe(
            "smooth_quant_args",
            "",
            ("",),
            variant=True,
            modes=("static", "dynamic"),
        )
    if pairs:
        yield Recipe(
            "cross_layer_equalization",
            False,
            ON_OFF,
            variant=True,
            modes=("static", "dynamic"),
        )
    if not layers:
        return
    yield Recipe(
        "adaround",
        False,
        ON_OFF,
        variant=True,
        modes=("static",),
    )
    yield Recipe(
        "weight_correction",
        False,
        ON_OFF,
        modes=("static",),
    )
    if any(layer.bias for layer in layers):
        yield Recipe(
            "fast_bias_correction",
            False,
            ON_OFF,
            modes=("static",),
        )


__all__ = ["ON_OFF", "shared_recipes"]
