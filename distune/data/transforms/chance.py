"""Image transforms with chance, for calibration and training; seeded by sample (see ``RandomTransform``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distune.data import images
from distune.data.registry import transform_registry
from distune.data.transform import RandomTransform
from distune.errors import DataError

_TRIES = 10


@transform_registry("RandomCrop")
class RandomCrop(RandomTransform):
    """Cut out a box of ``size`` (height and width; one number makes a square) at a random place."""

    def __init__(self, size: int | Sequence[int]) -> None:
        self._size = images.two(size, "RandomCrop: size")

    def draw(self, sample: Any, rng: np.random.Generator) -> Any:
        (height, width), (rows, columns) = images.image_size(sample), self._size
        top = int(rng.integers(0, max(height - rows, 0) + 1))
        left = int(rng.integers(0, max(width - columns, 0) + 1))
        return images.crop(sample, top, left, rows, columns)


@transform_registry("RandomResizedCrop")
class RandomResizedCrop(RandomTransform):
    """Cut out a box of random area and aspect ratio and resample it (Szegedy et al., arXiv:1409.4842, section 6).

    Args:
        size: Height and width of the result; one number makes a square.
        scale: Range of the box's share of the image's area.
        ratio: Range of its width to height, drawn evenly on a log scale.
        interpolation: As of ``Resize``.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ) -> None:
        self._size = images.two(size, "RandomResizedCrop: size")
        for name, pair in (("scale", scale), ("ratio", ratio)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise DataError(f"RandomResizedCrop: {name} must be [low, high] with 0 < low <= high, not {pair!r}")
        self._scale, self._ratio = (scale[0], scale[1]), (ratio[0], ratio[1])
        self._interpolation = images.check_interpolation(interpolation)

    def draw(self, sample: Any, rng: np.random.Generator) -> Any:
        height, width = images.image_size(sample)
        box = self._box(height, width, rng)
        return images.resize(images.crop(sample, *box), *self._size, self._interpolation)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """``(top, left, height, width)``; the largest central box of an allowed ratio where no draw fits."""
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self._scale)
            aspect = math.exp(rng.uniform(math.log(self._ratio[0]), math.log(self._ratio[1])))
            rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < rows <= height and 0 < columns <= width:
                return int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1)), rows, columns
        aspect = min(max(width / height, self._ratio[0]), self._ratio[1])
        rows, columns = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
        return (height - rows) // 2, (width - columns) // 2, rows, columns


class _RandomFlip(RandomTransform):
    """Mirror with probability ``p``."""

    _axis: int

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise DataError(f"{type(self).__name__}: p must lie in 0..1, not {p}")
        self._p = p

    def draw(self, sample: Any, rng: np.random.Generator) -> Any:
        return images.flip(sample, self._axis) if rng.random() < self._p else sample


@transform_registry("RandomHorizontalFlip")
class RandomHorizontalFlip(_RandomFlip):
    """Mirror left to right with probability ``p``."""

    _axis = 1


@transform_registry("RandomVerticalFlip")
class RandomVerticalFlip(_RandomFlip):
    """Turn upside down with probability ``p``."""

    _axis = 0
