"""Which torch and torchao this backend runs on, and importing them without the noise about GPUs that are not there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from distune.errors import MissingExtraError, UsageError

MINIMUM: dict[str, str] = {"torch": "2.13.0", "torchao": "0.18.0"}
"""The oldest versions that are known to work together."""

_NOISE = re.compile(
    r"Failed to load .*\.so|Enum subclass and is now natively supported|Skipping import of cpp extensions"
)
"""What torchao says on import of kernels for other devices; every other record is let through."""


@cache
def require_torch() -> None:
    """Make sure that torch and torchao are there, fit together, and are imported. Cheap when called again.

    Raises:
        MissingExtraError: One of them is not installed.
        UsageError: One is too old; says which version is needed.
    """
    for name, minimum in MINIMUM.items():
        try:
            have = version(name)
        except PackageNotFoundError as error:
            raise MissingExtraError(name, "torch", "to quantize a PyTorch model") from error
        if _numbers(have) < _numbers(minimum):
            pair = " with ".join(f"{each} {oldest}" for each, oldest in MINIMUM.items())
            raise UsageError(
                f"{name} {have} is too old for the PyTorch backend, which needs {name} {minimum} or newer (tested is "
                f"{pair}); install it with: pip install --upgrade 'distune[torch]'"
            )
    with _without_noise():
        import_module("torchao.quantization.pt2e.quantize_pt2e")
        import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")


def versions() -> dict[str, str]:
    """Versions of the libraries that decide about numbers."""
    return {name: version(name) for name in ("torch", "torchao", "numpy")}


@contextmanager
def _without_noise() -> Iterator[None]:
    names = ("torchao", "torch.utils._pytree", "torch")
    loggers = [logging.getLogger(name) for name in names]

    def keep(record: logging.LogRecord) -> bool:
        return not _NOISE.search(record.getMessage())

    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else (0,)
