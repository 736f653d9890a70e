"""Seeded random data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.data.dataset import ArrayDataset
from distune.data.registry import dataset_registry
from distune.errors import DataError


@dataset_registry("Dummy", "dummy")
class Dummy(ArrayDataset):
    """Uniform random inputs with label 0, for trying out and for latency.

    Args:
        shape: ``[samples, ...]`` of one input, or a list of such shapes for several inputs.
        low, high: Range of the values, ``high`` excluded; one number, or one for each input.
        dtype: NumPy dtype; one, or one for each input.
        label: Whether samples carry a label.
        seed: The job's seed unless given.
    """

    def __init__(
        self,
        shape: Sequence[int] | Sequence[Sequence[int]],
        low: float | Sequence[float] = -128.0,
        high: float | Sequence[float] = 127.0,
        dtype: str | Sequence[str] = "float32",
        label: bool = True,
        seed: int = 0,
    ) -> None:
        shapes: list[Any] = [shape] if all(isinstance(size, int) for size in shape) else list(shape)
        count = len(shapes)
        rng = np.random.default_rng(seed)
        arrays = tuple(
            _draw(rng, tuple(int(size) for size in dims), lo, hi, np.dtype(kind))
            for dims, lo, hi, kind in zip(
                shapes,
                _each(low, count, "low"),
                _each(high, count, "high"),
                _each(dtype, count, "dtype"),
                strict=True,
            )
        )
        labels = np.zeros(len(arrays[0]), np.int64) if label else None
        super().__init__(arrays if count > 1 else arrays[0], labels)


def _each(value: Any, count: int, what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise DataError(f"Dummy: {len(value)} values of {what} for {count} shapes")
    return list(value)


def _draw(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float, dtype: np.dtype[Any]
) -> NDArray[Any]:
    if not shape or high <= low:
        raise DataError(
            f"Dummy: shape {list(shape)} needs a first axis of samples, and high ({high}) be above low ({low})"
        )
    if dtype.kind in "iu":
        return rng.integers(int(low), int(high), shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.uniform(low, high, shape).astype(dtype)
