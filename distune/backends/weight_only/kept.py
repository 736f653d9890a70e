"""Quantized weights that are remembered within a run, and those that a saved tuning config carries."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.weight_only.grouped import GroupedWeight, WeightFormat
from distune.errors import TrialError
from distune.space.op_config import OpConfig

_SMALLEST = 64 << 20


class KeptWeights:
    """Remembers quantized weights; the least recently used are forgotten.

    Args:
        limit: Bytes that they may take, at least 64 MiB.
    """

    def __init__(self, limit: int) -> None:
        self._limit = max(limit, _SMALLEST)
        self._kept: OrderedDict[Hashable, GroupedWeight] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], GroupedWeight]) -> GroupedWeight:
        """The weight of ``key``, made where it is not remembered."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = make()
        self._kept[key] = made
        self._bytes += _size(made)
        while self._bytes > self._limit and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _size(dropped)
        return made

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._bytes = 0


Arrays = Mapping[str, NDArray[Any]]
"""A weight as arrays by role: ``integers``, ``scales``, ``zero_points``, and ``input_scale`` where it has one."""


def saved(weights: Mapping[str, GroupedWeight], ops: Mapping[str, OpConfig]) -> dict[str, Arrays]:
    """The weights that cannot be made again without calibration data, as arrays, by op name."""
    return {name: _arrays(weight) for name, weight in weights.items() if ops[name].needs_calibration}


def restored(weights: Mapping[str, Arrays | str], ops: Mapping[str, OpConfig]) -> dict[str, GroupedWeight]:
    """Inverse of ``saved``. Text is how it was saved before: the same arrays as ``.npz`` in base64.

    Raises:
        TrialError: A weight of an op whose config quantizes none.
    """
    out = {}
    for name, saved_weight in weights.items():
        tensor = ops[name].weight
        if tensor is None:
            raise TrialError(f"op {name!r} has a saved weight, but its config quantizes none")
        arrays = _from_text(saved_weight) if isinstance(saved_weight, str) else saved_weight
        out[name] = GroupedWeight(
            arrays["integers"],
            arrays["scales"],
            arrays["zero_points"],
            WeightFormat(tensor.bits, tensor.group_size, "sym" if tensor.scheme == "sym" else "asym"),
            arrays.get("input_scale"),
        )
    return out


def _size(weight: GroupedWeight) -> int:
    return int(weight.integers.nbytes + weight.scales.nbytes + weight.zero_points.nbytes)


def _arrays(weight: GroupedWeight) -> Arrays:
    arrays: dict[str, NDArray[Any]] = {
        "integers": weight.integers,
        "scales": weight.scales,
        "zero_points": weight.zero_points,
    }
    if weight.input_scale is not None:
        arrays["input_scale"] = weight.input_scale
    return arrays


def _from_text(text: str) -> Arrays:
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return dict(arrays)
