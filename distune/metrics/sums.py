"""A sum that does not depend on the order in which its terms came."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class ExactSum:
    """Adds floats without any rounding, so that any order and any grouping of the terms give the same value.

    Kept as a few floats whose sum is the exact one (Shewchuk, "Adaptive Precision Floating-Point Arithmetic", 1997,
    section 2), which ``math.fsum`` rounds once, when asked.
    """

    def __init__(self) -> None:
        self._parts: list[float] = []
        self._beyond = 0.0

    def add(self, terms: NDArray[np.float64]) -> None:
        """Take in terms; infinities and NaN count as they do in any sum."""
        finite = np.isfinite(terms)
        if not finite.all():
            self._beyond += float(np.sum(terms[~finite]))
            terms = terms[finite]
        try:
            self._parts = _expansion([*self._parts, *terms.tolist()])
        except OverflowError:
            self._beyond += float(np.sum(terms))

    def value(self, more: Iterable[float] = ()) -> float:
        """The sum, rounded once; ``more`` terms count for this answer only."""
        further = list(more)
        if self._beyond or not all(map(math.isfinite, further)):  # NaN is true as well
            return self._beyond + sum(further)
        return math.fsum([*self._parts, *further])


def exact_sum(terms: NDArray[np.float64]) -> float:
    """The sum of the terms, rounded once."""
    total = ExactSum()
    total.add(terms)
    return total.value()


def _expansion(terms: list[float]) -> list[float]:
    """Few floats with the same exact sum."""
    parts: list[float] = []
    while rest := math.fsum([*terms, *(-part for part in parts)]):
        parts.append(rest)
    return parts
