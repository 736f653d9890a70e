"""The samples that decide how the fallback of one op does, and a score of a model from them alone.

Trials that rank ops differ from one quantized config, the base, in one op each. Which samples they can flip is told by
the base's margins, not by fp32's: quantizing everything moves the margins of a hard model by several times what one op
moves them back. (MobileNetV1: by 1.0 against 0.1 to 0.2 for most ops. A fifth of the samples by fp32's margins holds
some 60% of the flips, a fifth by the base's all but a few.) So the base is scored once on all samples, those of its
smallest margins are decisive, and for all others a trial is taken to do what the base does. What is left out are the
flips of samples of larger margins, so the score is the accuracy itself where there are none.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError
from distune.metrics.per_sample import Outcomes, PerSampleForm
from distune.metrics.sums import ExactSum, exact_sum

Margins = NDArray[np.float64] | None

SHARE = 0.2
"""Share of the samples that ranking looks at, at most."""

_STEEP = 0.1
"""Width of the step from wrong to right by which margins are graded, in standard deviations of the base's margins."""

_VERSION = 2


@dataclass(frozen=True)
class DecisiveSamples:
    """See the module's description.

    Attributes:
        chosen: One bit a sample, in the order of the data.
        samples: Samples in all.
        batch_size: They are scored in whole batches of so many.
        outside: The base's sum of outcomes over all other samples, by metric.
        scales: A margin's usual size, by metric; ``None`` for one that says no margins.
        scale: The same of the smallest margin over the metrics (``smallest_margins``).
        grade: The base's mean grade.
    """

    chosen: bytes
    samples: int
    batch_size: int
    outside: tuple[float, ...]
    scales: tuple[float | None, ...]
    scale: float
    grade: float

    @cached_property
    def rows(self) -> NDArray[np.intp]:
        """Positions of the samples in the data."""
        return np.flatnonzero(np.unpackbits(np.frombuffer(self.chosen, np.uint8), count=self.samples))

    def encode(self) -> str:
        """As text for a message and the journal, an eighth of a byte a sample; ``decode`` is the inverse."""
        packed = base64.b64encode(zlib.compress(self.chosen, 9)).decode()
        sizes = [self.samples, self.batch_size]
        return json.dumps([_VERSION, packed, *sizes, self.outside, self.scales, self.scale, self.grade])

    @classmethod
    def decode(cls, text: str) -> DecisiveSamples:
        """Inverse of ``encode``.

        Raises:
            DataError: Another version of distune wrote it.
        """
        version, *content = json.loads(text)
        if version != _VERSION:
            raise DataError(
                f"the decisive samples are of version {version}, and this distune reads {_VERSION}; "
                "use the version of distune that wrote them, or start over with --fresh"
            )
        packed, samples, batch_size, outside, scales, scale, grade = content
        chosen = zlib.decompress(base64.b64decode(packed))
        return cls(chosen, samples, batch_size, tuple(outside), tuple(scales), scale, grade)


def choose(
    margins: NDArray[np.float64],
    outcomes: Sequence[NDArray[np.float64]],
    batch_size: int,
    scales: tuple[float | None, ...],
) -> DecisiveSamples | None:
    """The samples of the smallest margins, in whole batches; ``None`` where one batch is more than ``SHARE``.

    Args:
        margins: The base's smallest margins [n], in the order of the data.
        outcomes: The base's outcomes [n], by metric.
        scales: What made the smallest margins comparable, by metric.
    """
    count = int(SHARE * len(margins)) // batch_size * batch_size
    known = margins[np.isfinite(margins)]
    if not count or count > len(known):
        return None
    chosen = np.zeros(len(margins), np.bool_)
    chosen[np.argsort(np.abs(margins), kind="stable")[:count]] = True
    scale = spread(known) or 1.0
    outside = tuple(exact_sum(values[~chosen]) for values in outcomes)
    grade = exact_sum(_grades(margins[chosen], scale)) / count
    return DecisiveSamples(np.packbits(chosen).tobytes(), len(margins), batch_size, outside, scales, scale, grade)


def spread(margins: NDArray[np.float64]) -> float:
    """Standard deviation of the margins that are finite; 0 where none is."""
    known = margins[np.isfinite(margins)]
    return float(np.std(known)) if len(known) else 0.0


def smallest_margins(margins: Sequence[Margins], scales: Sequence[float | None]) -> NDArray[np.float64]:
    """The smallest margin of each sample over the metrics that have a scale, in units of it; one has to have one."""
    pairs = zip(margins, scales, strict=True)
    scaled = [found / scale for found, scale in pairs if found is not None and scale is not None]
    smallest: NDArray[np.float64] = np.min(scaled, axis=0)
    return smallest


class DecisiveScore:
    """Follows one evaluation over the decisive samples.

    Args:
        forms: The metrics.
        decisive: The samples.
        totals: Weight of all samples, by metric.
        combine: The accuracy from the metrics' values.
        higher_is_better: Direction of the accuracy.
    """

    def __init__(
        self,
        forms: Sequence[PerSampleForm],
        decisive: DecisiveSamples,
        totals: Sequence[float],
        combine: Callable[[Sequence[float]], float],
        higher_is_better: bool,
    ) -> None:
        self._forms = forms
        self._decisive = decisive
        self._totals = totals
        self._combine = combine
        self._sign = 1.0 if higher_is_better else -1.0
        self._sums = [ExactSum() for _ in forms]
        self._graded = ExactSum()

    def take(self, outcomes: Sequence[Outcomes], margins: Sequence[Margins]) -> None:
        """One decisive batch, by metric.

        Raises:
            DataError: A metric says no margins here, and it said some of the base.
        """
        for found, total in zip(outcomes, self._sums, strict=True):
            total.add(found.values)
        for form, own, scale in zip(self._forms, margins, self._decisive.scales, strict=True):
            if own is None and scale is not None:
                raise DataError(f"metric {form.name!r} gives margins of one model and none of another")
        smallest = smallest_margins(margins, self._decisive.scales)
        self._graded.add(_grades(smallest, self._decisive.scale))

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every metric, with the base's outcomes for the samples that are not decisive."""
        return {
            form.name: form.finish(total.value([outside]) / whole)
            for form, total, outside, whole in zip(
                self._forms, self._sums, self._decisive.outside, self._totals, strict=True
            )
        }

    @property
    def accuracy(self) -> float:
        """The accuracy by the same reckoning."""
        return self._combine(list(self.metrics.values()))

    @property
    def value(self) -> float:
        """The score: the accuracy, and a part of one sample for how far the margins moved away from the base's.

        Flips decide, and among equal numbers of flips the shift of the logits. The base's own score is its accuracy.
        """
        moved = self._graded.value() / len(self._decisive.rows) - self._decisive.grade
        return self.accuracy + self._sign * moved / self._decisive.samples


def _grades(margins: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """From 0 (wrong) to 1 (right), 0.5 on the border."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(margins / (_STEEP * scale), -50.0, 50.0))))
