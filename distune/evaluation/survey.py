"""What the fp32 model says of every sample, and the order of the samples that follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distune.evaluation.order import SampleOrder, build_order
from distune.metrics.per_sample import Outcomes, PerSampleForm
from distune.metrics.sums import ExactSum

Margins = NDArray[np.float64] | None

_ALIKE = 1e-3
"""Difference of a margin, in standard deviations of all margins, that rounding in another batch may make."""


class Survey:
    """Outcomes and margins of the fp32 model, batch after batch.

    Args:
        forms: The metrics.
        higher: Whether higher is better, by metric.
    """

    def __init__(self, forms: Sequence[PerSampleForm], higher: Sequence[bool]) -> None:
        self._forms = forms
        self._higher = higher
        self._outcomes: list[list[Outcomes]] = [[] for _ in forms]
        self._margins: list[list[Margins]] = [[] for _ in forms]

    def take(self, outcomes: Sequence[Outcomes], margins: Sequence[Margins]) -> None:
        """One batch, by metric."""
        for kept, found in zip(self._outcomes, outcomes, strict=True):
            kept.append(found)
        for kept_margins, margin in zip(self._margins, margins, strict=True):
            kept_margins.append(margin)

    def order(self, sizes: Sequence[int]) -> SampleOrder:
        """The order of the samples.

        With margins: by growing margin, so that what is wrong comes first. Without: the worst outcomes first.
        """
        values, weights = self._values(), self._weights()
        margins = self._all_margins()
        keys = margins if margins is not None else -self._badness(values, weights)
        totals = [_total(weight) for weight in weights]
        return build_order(keys, margins, values, totals, sizes)

    def agrees(self, rows: NDArray[np.intp], outcomes: Sequence[Outcomes], margins: Sequence[Margins]) -> bool:
        """Whether the samples ``rows``, scored together in one batch, come out as they did in the user's batches.

        They do not where the model's outputs for a sample depend on its neighbours in the batch.
        """
        for known, found in zip(self._values(), outcomes, strict=True):
            if not np.allclose(known[rows], found.values, rtol=1e-3, atol=1e-6, equal_nan=True):
                return False
        for index, margin in enumerate(margins):
            known_margins = self._of_metric(index)
            if margin is not None and known_margins is not None:
                near = _ALIKE * float(np.std(known_margins[np.isfinite(known_margins)]))
                if not np.allclose(known_margins[rows], margin, rtol=0.0, atol=near, equal_nan=True):
                    return False
        return True

    def _values(self) -> list[NDArray[np.float64]]:
        return [np.concatenate([found.values for found in kept]) for kept in self._outcomes]

    def _weights(self) -> list[NDArray[np.float64]]:
        return [np.concatenate([found.weights for found in kept]) for kept in self._outcomes]

    def _of_metric(self, index: int) -> Margins:
        parts = [part for part in self._margins[index] if part is not None]
        return np.concatenate(parts) if len(parts) == len(self._margins[index]) else None

    def _all_margins(self) -> Margins:
        """The smallest margin of each sample over the metrics that say margins, in units of their spread."""
        found = [margins for index in range(len(self._forms)) if (margins := self._of_metric(index)) is not None]
        if not found:
            return None
        scaled = [margins / (float(np.std(margins[np.isfinite(margins)])) or 1.0) for margins in found]
        smallest: NDArray[np.float64] = np.min(scaled, axis=0)
        return smallest if len(found) > 1 else found[0]

    def _badness(
        self, values: Sequence[NDArray[np.float64]], weights: Sequence[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """How much each sample takes from the result, relative to the sample that takes most, over the metrics."""
        total = np.zeros(len(values[0]))
        for form, higher, outcomes, weight in zip(self._forms, self._higher, values, weights, strict=True):
            bad = weight * form.high - outcomes if higher and np.isfinite(form.high) else outcomes
            total += np.nan_to_num(bad, nan=0.0) / (float(np.nanmax(np.abs(bad))) or 1.0)
        return total


def _total(weights: NDArray[np.float64]) -> float:
    exact = ExactSum()
    exact.add(weights)
    return exact.value()
