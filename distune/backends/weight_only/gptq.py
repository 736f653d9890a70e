"""GPTQ: round one input channel after the other and let those to come make up for the error.

Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323, algorithm 1. Minimises ``|X W - X Q|`` for the inputs X of the calibration data, of which only
``H = X^T X`` is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distune.backends.weight_only.grouped import (
    Float,
    GroupedWeight,
    WeightFormat,
    grouped,
    parameters,
    to_integers,
)
from distune.backends.weight_only.range_search import searched_parameters
from distune.errors import TrialError

_Parameters = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class GptqSettings:
    """Settings of GPTQ (recipe ``gptq_args``).

    Attributes:
        percdamp: Share of the mean of H's diagonal that is added to the diagonal.
        blocksize: Channels after which the error is passed on to all channels to come; changes no result, only speed.
        actorder: Take the channels of largest ``H[k, k]`` first. Scales are then those of the original weight.
        mse: Search each group's range for the smallest squared error, weighted with H's diagonal, instead of covering
            every value.

    Both are on by default, unlike in the paper's code: ``benchmarks/weight_only.py`` shows what they bring.
    """

    percdamp: float = 0.01
    blocksize: int = 128
    actorder: bool = True
    mse: bool = True


def gptq(
    weight: Float, hessian: NDArray[np.float64], form: WeightFormat, settings: GptqSettings = GptqSettings()
) -> GroupedWeight:
    """Quantize ``weight`` [K, N].

    Args:
        hessian: ``X^T X`` of the inputs, float64 [K, K], in any unit.

    Raises:
        TrialError: The damped Hessian is not positive definite.
    """
    channels, outputs = weight.shape
    diagonal = np.diag(hessian).copy()
    order = np.argsort(-diagonal, kind="stable") if settings.actorder else np.arange(channels)
    upper = _inverse_factor(hessian[np.ix_(order, order)], settings.percdamp)
    size = form.group(channels)
    scales = np.empty((-(-channels // size), outputs), np.float32)
    zero_points = np.empty_like(scales)
    if settings.actorder:
        scales, zero_points = _parameters(weight.astype(np.float64), diagonal, form, settings)
    rest = weight.astype(np.float64)[order]
    integers = np.empty((channels, outputs), np.uint8)
    for start in range(0, channels, settings.blocksize):
        stop = min(start + settings.blocksize, channels)
        errors = np.empty((stop - start, outputs))
        for row in range(start, stop):
            channel = int(order[row])
            group = channel // size
            if not settings.actorder and row % size == 0:
                end = min(row + size, channels)
                pending = upper[start:row, stop:end].T @ errors[: row - start] if end > stop else None
                current = rest[row:end].copy()
                if pending is not None:
                    current[stop - row :] -= pending
                one = WeightFormat(form.bits, -1, form.scheme)
                found = _parameters(current, diagonal[row:end], one, settings)
                scales[group], zero_points[group] = found[0][0], found[1][0]
            levels = to_integers(rest[row], scales[group], zero_points[group], form)
            integers[channel] = levels
            error = (rest[row] - (levels - zero_points[group]) * scales[group]) / upper[row, row]
            rest[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], error)
            errors[row - start] = error
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    return GroupedWeight(integers, scales, zero_points, form)


def _parameters(
    weight: NDArray[np.float64], importance: NDArray[np.float64], form: WeightFormat, settings: GptqSettings
) -> _Parameters:
    size = form.group(len(weight))
    if settings.mse:
        return searched_parameters(weight, np.sqrt(importance), form)
    return parameters(grouped(weight, size), form)


def _inverse_factor(hessian: NDArray[np.float64], percdamp: float) -> NDArray[np.float64]:
    """Upper triangular U with ``U^T U`` the inverse of the damped Hessian."""
    hessian = hessian.copy()
    at = np.arange(len(hessian))
    # An input that was never seen has no curvature: its weights are then simply rounded.
    unseen = hessian[at, at] <= 0
    hessian[at[unseen], at[unseen]] = 1.0
    hessian[at, at] += percdamp * float(hessian[at, at].mean())
    try:
        # The Cholesky factor of the matrix turned round, turned back, is upper: H = R R^T, so that U is R inverted.
        factor = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
        upper: NDArray[np.float64] = np.linalg.solve(factor, np.eye(len(hessian)))
    except np.linalg.LinAlgError as error:
        raise TrialError(
            f"GPTQ: the Hessian of the inputs is not positive definite with percdamp {percdamp:g}: use more "
            f"calibration samples or a larger percdamp (recipe gptq_args)"
        ) from error
    return np.triu(upper)
