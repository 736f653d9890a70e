"""Which way each weight is rounded, chosen by what it does to the layer's output.

M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020 (arXiv:2004.10568), section 3: rounding every weight to the nearest integer is not the best for
the layer's output. With second moments ``H = E[x xᵀ]`` of the layer's input the expected squared output error of a row
``w`` is ``d H dᵀ``, ``d = s (q - z) - w``, and every ``q`` is the integer below or above (equation 13, a quadratic
unconstrained binary problem for each row). The authors relax it and descend by gradient; here it is solved by
coordinate descent on the binary problem itself, all rows at once and from two starts, which needs no hyperparameters,
lowers the error with every step, is deterministic, and stops after a fixed number of sweeps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64
"""Inputs whose changes are applied to the rest together: most of the work is then one matrix product a block."""

_DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it: the data never tell everything about the inputs."""

SWEEPS = 6
"""Sweeps over all weights at most; later ones change next to nothing."""


def adaptive_rounding(
    weight: NDArray[np.float64],
    scale: NDArray[np.float64],
    zero_point: NDArray[np.float64],
    limits: tuple[int, int],
    moments: NDArray[np.float64],
    sweeps: int = SWEEPS,
) -> NDArray[np.float64]:
    """Integers for the weights of one group of outputs.

    Args:
        weight: [outputs, inputs].
        scale, zero_point: [outputs, 1], or [1, 1] where all share them.
        limits: Smallest and largest integer.
        moments: ``E[x xᵀ]`` of the inputs, [inputs, inputs].
        sweeps: Passes over the weights.

    Returns:
        Whole numbers within ``limits``, [outputs, inputs].
    """
    inputs = weight.shape[1]
    damped = moments + np.eye(inputs) * (_DAMPING * float(np.mean(np.diag(moments))) + np.finfo(np.float64).tiny)
    below = np.clip(np.floor(weight / scale) + zero_point, *limits)
    above = np.clip(below + 1, *limits)
    nearest = np.clip(np.rint(weight / scale) + zero_point, *limits)
    low, high = (below - zero_point) * scale - weight, (above - zero_point) * scale - weight
    order = np.argsort(-np.diag(damped), kind="stable")
    damped, low, high = damped[np.ix_(order, order)], low[:, order], high[:, order]
    starts = (((nearest - zero_point) * scale - weight)[:, order], _compensated(low, high, damped))
    error, cost = np.empty_like(low), np.full(len(weight), np.inf)
    for start in starts:
        found = _descend(start, low, high, damped, sweeps)
        reached = ((found @ damped) * found).sum(1)
        better = reached < cost
        error[better], cost[better] = found[better], reached[better]
    restored = np.empty_like(error)
    restored[:, order] = error
    return np.asarray(np.clip(np.rint((restored + weight) / scale) + zero_point, *limits))


def _descend(
    start: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    moments: NDArray[np.float64],
    sweeps: int,
) -> NDArray[np.float64]:
    """Errors of the weights after coordinate descent from ``start``: each ``low`` or ``high``, [outputs, inputs]."""
    error = start.copy()
    gradient = error @ moments
    for _ in range(sweeps):
        changed = False
        for begin in range(0, error.shape[1], _BLOCK):
            block = slice(begin, min(begin + _BLOCK, error.shape[1]))
            before, inner = error[:, block].copy(), gradient[:, block].copy()
            for j in range(block.start, block.stop):
                wanted = error[:, j] - inner[:, j - begin] / moments[j, j]
                chosen = np.where(np.abs(low[:, j] - wanted) <= np.abs(high[:, j] - wanted), low[:, j], high[:, j])
                step = chosen - error[:, j]
                if step.any():
                    inner += step[:, None] * moments[j, block]
                    error[:, j] = chosen
            moved = error[:, block] - before
            if moved.any():
                changed = True
                gradient += moved @ moments[block]
        if not changed:
            break
    return np.asarray(error)


def _compensated(
    low: NDArray[np.float64], high: NDArray[np.float64], moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A start that looks ahead: weights are rounded one after the other, and what each one leaves is taken up by those
    to come, as far as real numbers could (the step of E. Frantar et al., "GPTQ", arXiv:2210.17323, section 3)."""
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T
    wanted = np.zeros_like(low)
    error = np.empty_like(low)
    for begin in range(0, low.shape[1], _BLOCK):
        end = min(begin + _BLOCK, low.shape[1])
        left = np.empty((len(low), end - begin))
        for j in range(begin, end):
            nearer = np.abs(low[:, j] - wanted[:, j]) <= np.abs(high[:, j] - wanted[:, j])
            error[:, j] = np.where(nearer, low[:, j], high[:, j])
            left[:, j - begin] = (wanted[:, j] - error[:, j]) / factor[j, j]
            wanted[:, j + 1 : end] -= left[:, j - begin : j - begin + 1] * factor[j, j + 1 : end]
        wanted[:, end:] -= left @ factor[begin:end, end:]
    return error


def mean_preserving_rounding(
    weight: NDArray[np.float64], scale: NDArray[np.float64], zero_point: NDArray[np.float64], limits: tuple[int, int]
) -> NDArray[np.float64]:
    """Nearest integers, but as few as needed rounded the other way, so that each row keeps its sum.

    The shapes are those of ``adaptive_rounding``.
    """
    exact = weight / scale + zero_point
    nearest = np.clip(np.rint(exact), *limits)
    excess = np.rint((nearest - exact).sum(1)).astype(int)
    out = nearest.copy()
    for row in np.flatnonzero(excess):
        direction = -np.sign(excess[row])
        gain = (exact[row] - nearest[row]) * direction  # those that are nearly rounded that way come first
        free = (nearest[row] + direction >= limits[0]) & (nearest[row] + direction <= limits[1])
        order = np.argsort(np.where(free, -gain, np.inf), kind="stable")[: min(abs(excess[row]), int(free.sum()))]
        out[row, order] += direction
    return np.asarray(out)


def output_error(
    weight: NDArray[np.float64], rounded: NDArray[np.float64], moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Expected squared error of each output, [outputs], where ``rounded`` stands for ``weight`` [outputs, inputs]."""
    difference = rounded - weight
    return np.asarray(np.einsum("oi,ij,oj->o", difference, moments, difference, optimize=True))
