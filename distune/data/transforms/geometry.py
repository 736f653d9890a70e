"""Image transforms without chance: resize, crop, pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.data import images
from distune.data.registry import transform_registry
from distune.data.transform import BatchTransform, SampleTransform
from distune.errors import DataError


@transform_registry("Resize")
class Resize(SampleTransform):
    """Resample to a size; the aspect ratio is not kept (``ResizeWithRatio`` keeps it).

    Args:
        size: Height and width; one number makes a square.
        interpolation: nearest, bilinear, bicubic, lanczos, box or hamming.
    """

    def __init__(self, size: int | Sequence[int], interpolation: str = "bilinear") -> None:
        self._size = images.two(size, "Resize: size")
        self._interpolation = images.check_interpolation(interpolation)

    def apply(self, sample: Any) -> Any:
        return images.resize(sample, *self._size, self._interpolation)


@transform_registry("ResizeWithRatio")
class ResizeWithRatio(SampleTransform):
    """Resample so that the shorter side becomes ``min_dim``, unless the longer one would exceed ``max_dim``.

    Args:
        min_dim: Pixels of the shorter side.
        max_dim: Most pixels of the longer side.
        padding: Fill up to a square of ``max_dim`` with ``constant_value``, the image in the upper left corner.
        constant_value: Value of the padding.
        interpolation: As of ``Resize``.
    """

    def __init__(
        self,
        min_dim: int = 800,
        max_dim: int = 1365,
        padding: bool = False,
        constant_value: float = 0,
        interpolation: str = "bilinear",
    ) -> None:
        if not 1 <= min_dim <= max_dim:
            raise DataError(f"ResizeWithRatio: 1 <= min_dim <= max_dim must hold, not {min_dim} and {max_dim}")
        self._min, self._max = min_dim, max_dim
        self._padding, self._value = padding, constant_value
        self._interpolation = images.check_interpolation(interpolation)

    def apply(self, sample: Any) -> Any:
        height, width = images.image_size(sample)
        scale = min(self._min / min(height, width), self._max / max(height, width))
        new = max(1, round(height * scale)), max(1, round(width * scale))
        resized = images.resize(sample, *new, self._interpolation)
        if not self._padding:
            return resized
        return images.pad(resized, 0, 0, self._max - new[1], self._max - new[0], self._value)


@transform_registry("CenterCrop")
class CenterCrop(BatchTransform):
    """Cut out the middle.

    Args:
        size: Height and width; one number makes a square.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        self._size = images.two(size, "CenterCrop: size")

    def apply(self, sample: Any) -> Any:
        return images.crop(sample, *self._corner(images.image_size(sample)), *self._size)

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        top, left = self._corner(images.image_size(samples[0]))
        images.crop(samples[0], top, left, *self._size)  # checks that it fits
        return samples[:, top : top + self._size[0], left : left + self._size[1]]

    def _corner(self, have: tuple[int, int]) -> tuple[int, int]:
        return (have[0] - self._size[0]) // 2, (have[1] - self._size[1]) // 2


@transform_registry("CropToBoundingBox")
class CropToBoundingBox(SampleTransform):
    """Cut out a fixed box, given by its upper left corner and its size in pixels."""

    def __init__(self, offset_height: int, offset_width: int, target_height: int, target_width: int) -> None:
        self._box = (offset_height, offset_width, target_height, target_width)

    def apply(self, sample: Any) -> Any:
        return images.crop(sample, *self._box)


@transform_registry("Pad")
class Pad(BatchTransform):
    """Add a border.

    Args:
        padding: Pixels on every side; ``[horizontal, vertical]``; or ``[left, top, right, bottom]``.
        fill: Value of the border.
    """

    def __init__(self, padding: int | Sequence[int], fill: float = 0) -> None:
        sides = [padding] * 4 if isinstance(padding, int) else [int(side) for side in padding]
        sides = sides * 2 if len(sides) == 2 else sides
        if len(sides) != 4 or min(sides) < 0:
            raise DataError(f"Pad: padding must be 1, 2 or 4 numbers of 0 or more, not {padding!r}")
        self._sides = (sides[0], sides[1], sides[2], sides[3])
        self._fill = fill

    def apply(self, sample: Any) -> Any:
        return images.pad(sample, *self._sides, self._fill)

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        images.image_size(samples[0])
        left, top, right, bottom = self._sides
        widths = [(0, 0), (top, bottom), (left, right)] + [(0, 0)] * (samples.ndim - 3)
        return np.pad(samples, widths, constant_values=self._fill)
