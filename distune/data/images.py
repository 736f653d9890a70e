"""Cutting and resizing of images, the same for Pillow images and arrays [H, W] or [H, W, C].

Pillow does the resampling of both; it is imported when the first image is resampled. Array slicing does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def is_pillow(sample: Any) -> TypeGuard[Image]:
    """True for a Pillow image, told without importing Pillow."""
    return type(sample).__module__.partition(".")[0] == "PIL"


def image_size(sample: Any) -> tuple[int, int]:
    """``(height, width)``.

    Raises:
        DataError: The sample is no image.
    """
    if is_pillow(sample):
        return sample.height, sample.width
    if not isinstance(sample, np.ndarray) or sample.ndim not in (2, 3):
        shape = getattr(sample, "shape", type(sample).__name__)
        raise DataError(f"an image transform needs a Pillow image or an array [H, W] or [H, W, C], not {shape}")
    return sample.shape[0], sample.shape[1]


def two(value: int | Sequence[int], what: str) -> tuple[int, int]:
    """``(height, width)`` of one number (a square) or of two."""
    values = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) == 1:
        values = values * 2
    if len(values) != 2 or min(values) < 1:
        raise DataError(f"{what} must be a positive number or [height, width], not {value!r}")
    return values[0], values[1]


def check_interpolation(name: str) -> str:
    """``name`` if Pillow has such a filter."""
    if name not in INTERPOLATIONS:
        raise DataError(f"interpolation {name!r} is unknown; known: {', '.join(INTERPOLATIONS)}")
    return name


def resize(sample: Any, height: int, width: int, interpolation: str) -> Any:
    """Resample to ``height`` x ``width``. Float arrays are resampled channel by channel in float32."""
    from PIL import Image

    kind = Image.Resampling[interpolation.upper()]
    if is_pillow(sample):
        return sample.resize((width, height), kind)
    image_size(sample)
    if sample.dtype == np.uint8 and (sample.ndim == 2 or sample.shape[2] in (3, 4)):
        return np.asarray(Image.fromarray(sample).resize((width, height), kind))
    planes = sample[..., np.newaxis] if sample.ndim == 2 else sample
    mode = np.uint8 if sample.dtype == np.uint8 else np.float32
    resized = np.stack(
        [
            np.asarray(Image.fromarray(np.ascontiguousarray(planes[..., c], mode)).resize((width, height), kind))
            for c in range(planes.shape[2])
        ],
        axis=-1,
    )
    return resized[..., 0] if sample.ndim == 2 else resized


def crop(sample: Any, top: int, left: int, height: int, width: int) -> Any:
    """The part of an image that begins at ``(top, left)``; it must lie inside."""
    have = image_size(sample)
    if top < 0 or left < 0 or top + height > have[0] or left + width > have[1]:
        raise DataError(
            f"a crop of {height}x{width} at ({top}, {left}) does not fit into an image of {have[0]}x{have[1]}"
        )
    if is_pillow(sample):
        return sample.crop((left, top, left + width, top + height))
    return sample[top : top + height, left : left + width]


def pad(sample: Any, left: int, top: int, right: int, bottom: int, fill: float) -> Any:
    """Add a border of value ``fill``."""
    if is_pillow(sample):
        from PIL import ImageOps

        value = int(fill)
        bands = len(sample.getbands())
        return ImageOps.expand(sample, (left, top, right, bottom), value if bands == 1 else (value,) * bands)
    image_size(sample)
    widths = [(top, bottom), (left, right)] + [(0, 0)] * (sample.ndim - 2)
    return np.pad(sample, widths, constant_values=fill)


def flip(sample: Any, axis: int) -> Any:
    """Mirror: axis 0 upside down, axis 1 left to right."""
    if is_pillow(sample):
        from PIL import ImageOps

        return ImageOps.flip(sample) if axis == 0 else ImageOps.mirror(sample)
    image_size(sample)
    flipped: NDArray[Any] = np.flip(sample, axis)
    return flipped
