"""Quantization-aware training: refused, clearly, until the PyTorch backend is there."""

from __future__ import annotations

from typing import Any, NoReturn

from distune.errors import UsageError

_REASON = (
    "quantization-aware training needs the PyTorch backend, which is not there yet; distune.quantization.fit quantizes "
    "the trained model (exported to ONNX) without training it further"
)


def prepare_compression(model: Any, confs: Any) -> NoReturn:
    """Not available.

    Raises:
        UsageError: Always; says what there is instead.
    """
    raise UsageError(_REASON)


def fit(*args: Any, **kwargs: Any) -> NoReturn:
    """Not available.

    Raises:
        UsageError: Always; says what there is instead.
    """
    raise UsageError(_REASON)
