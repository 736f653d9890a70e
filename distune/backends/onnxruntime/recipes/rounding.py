"""Which way each weight is rounded, chosen by what it does to the layer's output.

M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020 (arXiv:2004.10568), section 3: rounding every weight to the nearest integer is not the best for
the layer's output. With second moments ``H = E[x xᵀ]`` of the layer's input the expected squared output error of a row
``w`` is ``d H dᵀ``, ``d = s (q - z) - w``, and every ``q`` is the integer below or above (equation 13, a quadratic
unconstrained binary problem for each row). The authors relax it and descend by gradient; here it is solved by
coordinate descent on the binary problem itself, all rows at once, which needs no hyperparameters, lowers the error with
every step, is deterministic, and stops after a fixed number of sweeps.
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
    error = (nearest - zero_point) * scale - weight
    order = np.argsort(-np.diag(damped), kind="stable")
    damped = damped[np.ix_(order, order)]
    error, low, high = error[:, order], low[:, order], high[:, order]
    gradient = error @ damped
    for _ in range(sweeps):
        changed = False
        for start in range(0, inputs, _BLOCK):
            stop = min(start + _BLOCK, inputs)
            before = error[:, start:stop].copy()
            inner = gradient[:, start:stop].copy()
            for j in range(start, stop):
                diagonal = damped[j, j]
                wanted = error[:, j] - inner[:, j - start] / diagonal
                chosen = np.where(np.abs(low[:, j] - wanted) <= np.abs(high[:, j] - wanted), low[:, j], high[:, j])
                step = chosen - error[:, j]
                if step.any():
                    inner += step[:, None] * damped[j, start:stop]
                    error[:, j] = chosen
            moved = error[:, start:stop] - before
            if moved.any():
                changed = True
                gradient += moved @ damped[start:stop]
        if not changed:
            break
    restored = np.empty_like(error)
    restored[:, order] = error
    return np.asarray(np.clip(np.rint((restored + weight) / scale) + zero_point, *limits))


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
