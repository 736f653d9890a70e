"""Calibration by a function of the user that calls the model: what it calls it with becomes the calibration data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distune.backends.pytorch.model import modes_kept
from distune.data.user_code import user_code
from distune.errors import UsageError

Recorded = list[tuple[dict[str, NDArray[Any]], None]]


def recorded_batches(module: torch.nn.Module, calib_func: Callable[..., Any], samples: int) -> Recorded:
    """Run ``calib_func(module)`` in inference and keep the inputs of the module's calls.

    Args:
        module: Set to eval mode.
        calib_func: Gets the module and calls it with batches.
        samples: Keep no more calls than give this many; axis 0 of the first input counts them.

    Returns:
        ``(inputs by parameter name, no label)`` of each call, as a calibration dataloader gives them.

    Raises:
        UserCodeError: ``calib_func`` raises.
        UsageError: It cannot be called, never calls the module, or calls it with something else than tensors.
    """
    if not callable(calib_func):
        raise UsageError(f"calib_func is a {type(calib_func).__name__}, which cannot be called")
    batches: Recorded = []
    kept = 0

    def record(called: torch.nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal kept
        if kept >= samples:
            return
        given = inspect.signature(called.forward).bind(*args, **kwargs).arguments
        for name, value in given.items():
            if not isinstance(value, torch.Tensor | type(None)):
                raise UsageError(
                    f"calib_func calls the model with a {type(value).__name__} as {name}; calibration takes tensors: "
                    "give such a model's batches as calib_dataloader"
                )
        # Copies: a function may fill one buffer again and again.
        batch = {name: np.array(value.detach().cpu().numpy()) for name, value in given.items() if value is not None}
        batches.append((batch, None))
        kept += len(next(iter(batch.values()))) if batch else 0

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with modes_kept(module), user_code("calib_func"), torch.no_grad():
            module.eval()
            calib_func(module)
    finally:
        handle.remove()
    if not batches:
        raise UsageError("calib_func never called the model it was given; it has to run the model on calibration data")
    return batches
