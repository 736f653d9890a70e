"""Whether what was read from a ``tuning_config.yaml``, which people edit, is of the form that a backend applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from distune.config.vocabulary import ALGORITHMS, DTYPES, FRAMEWORKS, GRANULARITIES, SCHEMES
from distune.errors import UsageError
from distune.space.op_config import Mode, TensorConfig, TuningConfig


def check_format(where: str, framework: Any, quant_format: Any) -> None:
    """Check the backend's name and the form of its models.

    Args:
        where: The file, for messages.

    Raises:
        UsageError: It is none that the backend writes.
    """
    if not isinstance(framework, str):
        raise _wrong(where, "framework", framework, "the name of a backend")
    known = {form for backend, form in FRAMEWORKS.values() if backend == framework}
    if not isinstance(quant_format, str) or (known and quant_format not in known):
        raise _wrong(where, "quant_format", quant_format, " or ".join(sorted(known)) or "a text")


def check_config(where: str, config: TuningConfig) -> None:
    """Check the words of every op's config.

    Raises:
        UsageError: One is unknown.
    """
    for name, op in config.ops:
        _one_of(where, f"config.ops.{name}.mode", op.mode, get_args(Mode))
        for role, tensor in (("activation", op.activation), ("weight", op.weight)):
            if tensor is not None:
                _check_tensor(where, f"config.ops.{name}.{role}", tensor)


def check_deploy(where: str, deploy: Any) -> None:
    """Check what a backend needs to export without data.

    Raises:
        UsageError: Something has another form than it was written in, or a range ends below its beginning.
    """
    if not isinstance(deploy, Mapping):
        raise _wrong(where, "deploy", deploy, "what the run wrote there")
    for key in ("reduce_range", "amx"):
        if not isinstance(deploy.get(key, False), bool):
            raise _wrong(where, f"deploy.{key}", deploy[key], "true or false")
    for key, (is_right, expected) in _ENTRIES.items():
        entries = deploy.get(key, {})
        if not isinstance(entries, Mapping):
            raise _wrong(where, f"deploy.{key}", entries, "what the run wrote there")
        for name, value in entries.items():
            if not is_right(value):
                raise _wrong(where, f"deploy.{key}.{name}", value, expected)


def _check_tensor(where: str, key: str, tensor: TensorConfig) -> None:
    _one_of(where, f"{key}.dtype", tensor.dtype, DTYPES)
    _one_of(where, f"{key}.scheme", tensor.scheme, SCHEMES)
    _one_of(where, f"{key}.granularity", tensor.granularity, GRANULARITIES)
    _one_of(where, f"{key}.algorithm", tensor.algorithm, ALGORITHMS)
    for name, value in (("bits", tensor.bits), ("group_size", tensor.group_size)):
        if not isinstance(value, int):
            raise _wrong(where, f"{key}.{name}", value, "a whole number")


def _one_of(where: str, key: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _wrong(where, key, value, f"one of {', '.join(known)}")


def _wrong(where: str, key: str, value: Any, expected: str) -> UsageError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
    return UsageError(f"{where}: {key} is {shown}; expected {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    return is_pair and bool(value[0] <= value[1])


def _is_factors(value: Any) -> bool:
    lists = value.values() if isinstance(value, Mapping) else [None]
    return all(isinstance(numbers, list) and all(map(_is_number, numbers)) for numbers in lists)


def _is_weight(value: Any) -> bool:
    return isinstance(value, str | Mapping)


def _is_inputs(value: Any) -> bool:
    inputs = value if isinstance(value, list) else [value]
    return all(isinstance(each, Mapping) and {"shape", "dtype", "dynamic"} <= each.keys() for each in inputs)


_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "ranges": (_is_range, "[lowest value, highest value]"),
    "graph": (_is_factors, "lists of numbers by name"),
    "corrected": (lambda value: isinstance(value, str), "the text that the run wrote there"),
    "weights": (_is_weight, "the arrays that the run wrote there"),
    "trained": (lambda value: isinstance(value, np.ndarray | list), "the array that the run wrote there"),
    "example_inputs": (_is_inputs, "shape, dtype and dynamic of an input"),
    "parts": (_is_inputs, "shape, dtype and dynamic of each input"),
}
"""What each entry of these parts has to be, by the part's name."""
