"""What every backend's weight-only quantization has in common: what is offered, and which weights are remembered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.second_moments import SecondMoments
from distune.backends.weight_only.grouped import GroupedWeight
from distune.backends.weight_only.kept import KeptWeights
from distune.backends.weight_only.quantize import SETTINGS_RECIPES, Settings, quantize_weight, settings
from distune.errors import ModelError, TrialError
from distune.space.capability import Recipe
from distune.space.op_config import OpConfig, TensorConfig

GROUP_SIZES = (32, 16, 64, 128, 256, 512, 1024, -1)
"""Group sizes that are offered, the default first."""

STORAGE = "weight_only_storage"
"""Recipe: how weights are stored; which values there are is up to the backend."""


class WeightOnlyQuantizer(ABC):
    """Quantizes weights of one model, one layer at a time, and remembers them.

    What is remembered takes no more memory than the fp32 model (or 64 MiB); the least recently used is forgotten.

    Args:
        weight_bytes: Of the fp32 model.
    """

    def __init__(self, weight_bytes: int) -> None:
        self._kept = KeptWeights(weight_bytes)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def quantized(
        self,
        ops: Mapping[str, OpConfig],
        recipes: Mapping[str, Any],
        moments: Callable[[str], SecondMoments | None],
        sampling_size: int,
    ) -> dict[str, GroupedWeight]:
        """The quantized weights of ``ops``, by op name.

        Args:
            ops: Weight-only configs by op name.
            recipes: Of the tuning config.
            moments: Gives those of an op's input by its name; asked for GPTQ and AWQ only.
            sampling_size: Identity of the calibration data behind ``moments``.

        Raises:
            TrialError: A config cannot be applied to its op.
        """
        given = settings(recipes)
        out = {}
        for name, config in ops.items():
            op_type = self._op_type(name)
            if op_type is None:
                raise TrialError(f"the model has no op {name!r}")
            if config.weight is None or not self._is_quantizable(name):
                raise TrialError(f"op {name!r} ({op_type}) has no weight for weight-only quantization")
            source = self._input(name) if config.needs_calibration else ""
            key = (self._weight_name(name), config.weight, given, source, sampling_size if source else 0)
            try:
                out[name] = self._kept.get(key, partial(self._make, name, config.weight, source, moments, given))
            except TrialError as error:
                raise TrialError(f"op {name!r}: {error}") from error
        return out

    @abstractmethod
    def _op_type(self, name: str) -> str | None:
        """The type of an op; ``None`` where the model has no such op."""

    @abstractmethod
    def _is_quantizable(self, name: str) -> bool:
        """Whether an op has a weight that can be quantized alone."""

    @abstractmethod
    def _weight_name(self, name: str) -> str:
        """What the weight of an op is called in the model: ops that share a weight share its quantized form."""

    @abstractmethod
    def _input(self, name: str) -> str:
        """The name under which second moments of the input of an op are kept."""

    @abstractmethod
    def _weight(self, name: str) -> NDArray[np.float32]:
        """The weight of an op, [input channels, output channels]."""

    def _make(
        self,
        name: str,
        tensor: TensorConfig,
        source: str,
        moments: Callable[[str], SecondMoments | None],
        given: Settings,
    ) -> GroupedWeight:
        return quantize_weight(self._weight(name), tensor, moments(source) if source else None, given)


def tensor_options(widths: Sequence[int], calibrated: bool) -> Iterator[TensorConfig]:
    """The weight-only formats in the order in which they are liked: width, algorithm, scheme, group size.

    HQQ chooses zero points and is asymmetric alone; GPTQ and AWQ need calibration data.
    """
    algorithms = ("RTN", "GPTQ", "AWQ", "HQQ") if calibrated else ("RTN", "HQQ")
    for bits, algorithm, scheme, group_size in product(widths, algorithms, ("sym", "asym"), GROUP_SIZES):
        if algorithm != "HQQ" or scheme == "asym":
            yield TensorConfig("int", scheme, "per_channel", algorithm, bits, group_size)


def settings_recipes() -> Iterator[Recipe]:
    """The recipes that hold the settings of one algorithm each."""
    for name in SETTINGS_RECIPES:
        yield Recipe(name, {}, ({},))


def check_recipes(recipes: Mapping[str, Any], storages: Sequence[str]) -> None:
    """Refuse values that the recipes of weight-only quantization do not take.

    Args:
        recipes: The user's.
        storages: Values of ``STORAGE``, the default first.

    Raises:
        ModelError: Such a value.
    """
    storage = recipes.get(STORAGE, storages[0])
    if storage not in storages:
        raise ModelError(f"recipe {STORAGE} is one of {', '.join(storages)}, not {storage!r}")
    try:
        settings(recipes)
    except TrialError as error:
        raise ModelError(str(error)) from error


__all__ = ["GROUP_SIZES", "STORAGE", "WeightOnlyQuantizer", "check_recipes", "settings_recipes", "tensor_options"]
