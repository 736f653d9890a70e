"""What a model says of every sample, and what follows from it.

That is the order of the samples where it is the fp32 model, and else those that decide about models that differ little.
Several workers can each make the survey of a shard; joined, these are the survey of the whole set, whoever made them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.data.batch import arrays_of
from distune.errors import DataError
from distune.evaluation.batches import Prepared
from distune.evaluation.order import SampleOrder, build_order
from distune.evaluation.ranking import DecisiveSamples, Margins, choose, smallest_margins, spread
from distune.metrics.per_sample import Outcomes, PerSampleForm
from distune.metrics.sums import exact_sum

_ALIKE = 1e-3
"""Difference of a margin, in standard deviations of all margins, that rounding in another batch may make."""

_COMPARED = 1024
"""Values of each input of a batch that tell it from others."""


class Survey:
    """Outcomes and margins of a model, batch after batch.

    Args:
        forms: The metrics.
        higher: Whether higher is better, by metric.

    Attributes:
        evaluate_s, inference_s: Seconds that it took, and of them in inference.
    """

    def __init__(self, forms: Sequence[PerSampleForm], higher: Sequence[bool]) -> None:
        self._forms = forms
        self._higher = higher
        self._batches: dict[int, tuple[Sequence[Outcomes], Sequence[Margins]]] = {}
        self._read = hashlib.sha256()
        self.evaluate_s = 0.0
        self.inference_s = 0.0

    def take(self, index: int, outcomes: Sequence[Outcomes], margins: Sequence[Margins]) -> None:
        """The batch number ``index``, by metric."""
        self._batches[index] = (outcomes, margins)

    def see(self, batch: Prepared) -> None:
        """Every batch as it was read here, of this shard or of another, in their order."""
        labels = [np.ascontiguousarray(array).reshape(-1) for array in arrays_of(batch.labels)]
        beginnings = [np.array(array.flat[:_COMPARED]) for array in batch.feed.values()]
        for array in (*labels, *beginnings):
            self._read.update(f"{array.dtype.str}{array.shape}".encode())
            self._read.update(array.tobytes())

    @property
    def data(self) -> str:
        """Of which data the survey is: by all labels and the beginnings of the inputs of each batch (``see``)."""
        return self._read.hexdigest()

    def encode(self) -> bytes:
        """As bytes that ``join`` reads: 24 bytes a sample and metric."""
        arrays: dict[str, Any] = {
            "seconds": np.array([self.evaluate_s, self.inference_s]),
            "indices": np.array(sorted(self._batches), np.int64),
            "sizes": np.array(self.sizes, np.int64),
        }
        for metric in range(len(self._forms) if self._batches else 0):
            arrays[f"values{metric}"] = self._values()[metric]
            arrays[f"weights{metric}"] = self._weights()[metric]
            margins = self._of_metric(metric)
            if margins is not None:
                arrays[f"margins{metric}"] = margins
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    def join(self, blob: bytes) -> None:
        """Take in what the survey of other batches gave as ``encode``."""
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            arrays = dict(file)
        evaluate_s, inference_s = arrays.pop("seconds").tolist()
        self.evaluate_s += evaluate_s
        self.inference_s += inference_s
        indices, ends = arrays.pop("indices").tolist(), np.cumsum(arrays.pop("sizes")).tolist()
        for index, start, end in zip(indices, [0, *ends], ends, strict=False):
            part = {name: array[start:end] for name, array in arrays.items()}
            metrics = range(len(self._forms))
            outcomes = [Outcomes(part[f"values{metric}"], part[f"weights{metric}"]) for metric in metrics]
            self.take(index, outcomes, [part.get(f"margins{metric}") for metric in metrics])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each batch, in their order."""
        return tuple(len(outcomes[0].values) for outcomes, _ in self._in_order())

    def results(self) -> dict[str, float]:
        """Every metric over all batches, by name: the number that the metric itself would give.

        Raises:
            DataError: No sample counts.
        """
        out: dict[str, float] = {}
        values, weights = (self._values(), self._weights()) if self._batches else ([], [])
        for index, form in enumerate(self._forms):
            total = exact_sum(weights[index]) if weights else 0.0
            if total == 0:
                raise DataError(f"{form.name}: no samples")
            out[form.name] = form.finish(exact_sum(values[index]) / total)
        return out

    def order(self) -> SampleOrder:
        """The order of the samples.

        With margins: by growing margin, so that what is wrong comes first. Without: the worst outcomes first.
        """
        values, weights = self._values(), self._weights()
        margins = self._all_margins()
        keys = margins if margins is not None else -self._badness(values, weights)
        totals = [exact_sum(weight) for weight in weights]
        return build_order(keys, margins, totals, self.sizes)

    def decisive(self, rows: NDArray[np.intp], batch_size: int) -> DecisiveSamples | None:
        """The samples that decide about models that differ a little from this one; ``None`` where there are none.

        Args:
            rows: Position in the data of each sample, in the order in which they were taken.
        """
        margins = self._all_margins()
        if margins is None:
            return None
        back = np.argsort(rows)
        return choose(margins[back], [values[back] for values in self._values()], batch_size, self._scales())

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
                near = _ALIKE * spread(known_margins)
                if not np.allclose(known_margins[rows], margin, rtol=0.0, atol=near, equal_nan=True):
                    return False
        return True

    def _in_order(self) -> list[tuple[Sequence[Outcomes], Sequence[Margins]]]:
        return [self._batches[index] for index in sorted(self._batches)]

    def _values(self) -> list[NDArray[np.float64]]:
        return [np.concatenate([found.values for found in kept]) for kept in self._outcomes()]

    def _weights(self) -> list[NDArray[np.float64]]:
        return [np.concatenate([found.weights for found in kept]) for kept in self._outcomes()]

    def _outcomes(self) -> list[tuple[Outcomes, ...]]:
        """All batches' outcomes, by metric."""
        return list(zip(*(outcomes for outcomes, _ in self._in_order()), strict=True))

    def _of_metric(self, index: int) -> Margins:
        parts = [margins[index] for _, margins in self._in_order()]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    def _all_margins(self) -> Margins:
        """The smallest margin of each sample over the metrics that say margins, in units of their spread."""
        scales = self._scales()
        if all(scale is None for scale in scales):
            return None
        return smallest_margins([self._of_metric(index) for index in range(len(self._forms))], scales)

    def _scales(self) -> tuple[float | None, ...]:
        """The spread of the margins, by metric that says some; 1 for a single one, which needs no comparing."""
        found = [self._of_metric(index) for index in range(len(self._forms))]
        if sum(margins is not None for margins in found) == 1:
            return tuple(None if margins is None else 1.0 for margins in found)
        return tuple(None if margins is None else spread(margins) or 1.0 for margins in found)

    def _badness(
        self, values: Sequence[NDArray[np.float64]], weights: Sequence[NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """How much each sample takes from the result, relative to the sample that takes most, over the metrics."""
        total = np.zeros(len(values[0]))
        for form, higher, outcomes, weight in zip(self._forms, self._higher, values, weights, strict=True):
            bad = weight * form.high - outcomes if higher and np.isfinite(form.high) else outcomes
            total += np.nan_to_num(bad, nan=0.0) / (float(np.nanmax(np.abs(bad))) or 1.0)
        return total
