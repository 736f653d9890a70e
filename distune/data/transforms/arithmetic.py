"""Transforms of array values, layout and dtype: all of them treat whole batches at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.data.registry import transform_registry
from distune.data.transform import BatchTransform
from distune.errors import DataError


@transform_registry("ToArray", "ToNDArray")
class ToArray(BatchTransform):
    """A Pillow image becomes a uint8 array [H, W, C]; arrays stay as they are."""

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        return samples


@transform_registry("ToTensor")
class ToTensor(BatchTransform):
    """An image [H, W, C] becomes float32 [C, H, W], divided by 255 where it was uint8."""

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        if samples.ndim == 3:
            samples = samples[..., np.newaxis]
        if samples.ndim != 4:
            raise DataError(f"ToTensor works on images [H, W, C]; this sample has shape {samples.shape[1:]}")
        scaled = samples.astype(np.float32)
        if samples.dtype == np.uint8:
            scaled /= np.float32(255)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@transform_registry("Rescale")
class Rescale(BatchTransform):
    """``sample / divisor + offset`` in float32: by default pixels become 0..1.

    Args:
        divisor: 255 unless given.
        offset: Added after the division; -1 with ``divisor`` 127.5 gives -1..1.
    """

    def __init__(self, divisor: float = 255.0, offset: float = 0.0) -> None:
        if divisor == 0:
            raise DataError("Rescale: divisor must not be 0")
        self._divisor = np.float32(divisor)
        self._offset = np.float32(offset)

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        scaled = samples.astype(np.float32)
        scaled /= self._divisor
        if self._offset:
            scaled += self._offset
        return scaled


@transform_registry("Normalize")
class Normalize(BatchTransform):
    """``(sample - mean) / std`` in float32, one mean and std in all or one a channel.

    Args:
        mean, std: A number or one a channel.
        axis: Axis of the channels in the sample. Unless given: the only one of the first and last axes that has as
            many entries as ``mean``.
    """

    def __init__(
        self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0, axis: int | None = None
    ) -> None:
        mean_values, std_values = (np.atleast_1d(np.asarray(v, np.float32)) for v in (mean, std))
        if np.any(std_values == 0):
            raise DataError("Normalize: std must not be 0")
        if 1 not in (mean_values.size, std_values.size) and mean_values.size != std_values.size:
            raise DataError(f"Normalize: {mean_values.size} means but {std_values.size} standard deviations")
        self._mean, self._std = mean_values, std_values
        self._channels = max(mean_values.size, std_values.size)
        self._axis = axis

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        shape = [1] * samples.ndim
        shape[self._channel_axis(samples.shape[1:])] = -1
        centred = samples.astype(np.float32)
        centred -= self._mean.reshape(shape if self._mean.size > 1 else [1] * samples.ndim)
        centred /= self._std.reshape(shape if self._std.size > 1 else [1] * samples.ndim)
        return centred

    def _channel_axis(self, shape: tuple[int, ...]) -> int:
        """Axis of the channels in the batch."""
        if self._channels == 1:
            return 0
        if self._axis is not None:
            candidates = {self._axis % len(shape)} if -len(shape) <= self._axis < len(shape) else set()
        else:
            candidates = {0, len(shape) - 1}
        fitting = sorted(axis for axis in candidates if shape and shape[axis] == self._channels)
        if len(fitting) != 1:
            why = "both the first and the last axis fit; give axis" if fitting else "no channel axis of that size"
            raise DataError(f"Normalize: {self._channels} channels for a sample of shape {shape}: {why}")
        return fitting[0] + 1


@transform_registry("Transpose")
class Transpose(BatchTransform):
    """Permute the axes of the sample: ``perm: [2, 0, 1]`` makes [C, H, W] of [H, W, C]."""

    def __init__(self, perm: Sequence[int]) -> None:
        self._perm = tuple(int(axis) for axis in perm)
        if sorted(self._perm) != list(range(len(self._perm))):
            raise DataError(f"Transpose: perm {list(self._perm)} is not a permutation of the axes 0, 1, …")

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        if samples.ndim != len(self._perm) + 1:
            raise DataError(f"Transpose: perm {list(self._perm)} for a sample of shape {samples.shape[1:]}")
        permuted: NDArray[Any] = samples.transpose(0, *(axis + 1 for axis in self._perm))
        return permuted


@transform_registry("Reshape")
class Reshape(BatchTransform):
    """Give the sample another shape; one size may be -1."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(int(size) for size in shape)

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        try:
            reshaped: NDArray[Any] = samples.reshape(len(samples), *self._shape)
        except ValueError as error:
            raise DataError(f"Reshape: {list(self._shape)} for a sample of shape {samples.shape[1:]}") from error
        return reshaped


@transform_registry("Cast")
class Cast(BatchTransform):
    """Convert to a NumPy dtype; values that do not fit are an error of the data, not wrapped around."""

    def __init__(self, dtype: str = "float32") -> None:
        try:
            self._dtype = np.dtype(dtype)
        except TypeError as error:
            raise DataError(f"Cast: {dtype!r} is no dtype") from error

    def batch(self, samples: NDArray[Any]) -> NDArray[Any]:
        if self._dtype.kind in "iu" and samples.size and not np.can_cast(samples.dtype, self._dtype, "safe"):
            low, high = samples.min(), samples.max()
            limits = np.iinfo(self._dtype)
            if not (limits.min <= low and high <= limits.max):
                raise DataError(f"Cast: values from {low} to {high} do not fit into {self._dtype}")
        return samples.astype(self._dtype, copy=False)
