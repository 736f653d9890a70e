"""A score of a model from the decisive samples alone: those of the smallest fp32 margins, which flip first.

It is the accuracy that the model would have if it did on all other samples what fp32 does there, plus a part of one
sample for how far the margins moved: flips decide, and among equal numbers of flips the shift of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from distune.evaluation.order import SampleOrder
from distune.evaluation.survey import Margins
from distune.metrics.per_sample import Outcomes, PerSampleForm
from distune.metrics.sums import ExactSum

_STEEP = 0.1
"""Width of the step from wrong to right by which margins are graded, in standard deviations of fp32's margins."""


class DecisiveScore:
    """Follows one evaluation over the decisive batches.

    Args:
        forms: The metrics.
        order: Has decisive batches.
        combine: The accuracy from the metrics' values.
        higher_is_better: Direction of the accuracy.

    Attributes:
        samples: Decisive samples seen so far.
    """

    def __init__(
        self,
        forms: Sequence[PerSampleForm],
        order: SampleOrder,
        combine: Callable[[Sequence[float]], float],
        higher_is_better: bool,
    ) -> None:
        self._forms = forms
        self._order = order
        self._combine = combine
        self._sign = 1.0 if higher_is_better else -1.0
        self._sums = [ExactSum() for _ in forms]
        self._graded = ExactSum()
        self.samples = 0

    def take(self, outcomes: Sequence[Outcomes], margins: Sequence[Margins]) -> None:
        """One decisive batch, by metric."""
        for found, total in zip(outcomes, self._sums, strict=True):
            total.add(found.values)
        margin = next(found for found in margins if found is not None)
        steps = np.clip(margin / ((_STEEP * self._order.scale) or 1.0), -50.0, 50.0)
        self._graded.add(1.0 / (1.0 + np.exp(-steps)))
        self.samples += len(margin)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every metric, with fp32's outcomes for the samples that are not decisive."""
        order = self._order
        return {
            form.name: form.finish(total.value([outside]) / whole)
            for form, total, outside, whole in zip(self._forms, self._sums, order.outside, order.totals, strict=True)
        }

    @property
    def accuracy(self) -> float:
        """The accuracy by the same reckoning."""
        return self._combine(list(self.metrics.values()))

    @property
    def value(self) -> float:
        """The score: comparable between models of one run, in the accuracy's unit and direction."""
        share = self._graded.value() / self.samples
        return self.accuracy + self._sign * share / len(self._order.parts)
