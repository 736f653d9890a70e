"""NaN and infinities in what models are given and in what they answer: counted, and said in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_NAMED = 5
"""Arrays that a message names at most."""


class NonFinite:
    """Counts of values that are not finite.

    Attributes:
        counts: NaN and infinities by name of the array, of those that have any.
    """

    def __init__(self, counts: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.counts = dict(counts or {})

    def take(self, names: Iterable[str], arrays: Iterable[Any]) -> None:
        """Count one batch of arrays; those of integers and of other things are finite."""
        for name, array in zip(names, arrays, strict=False):
            values = np.asarray(array)
            if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
                nan = int(np.isnan(values).sum())
                self.add({name: (nan, int(values.size - finite.sum()) - nan)})

    def add(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Add what another one has counted."""
        for name, (nan, infinite) in counts.items():
            before = self.counts.get(name, (0, 0))
            self.counts[name] = (before[0] + nan, before[1] + infinite)

    def __str__(self) -> str:
        return listed(
            f"{name} ({' and '.join(f'{n} {kind}' for n, kind in zip(each, ('NaN', 'infinite'), strict=True) if n)})"
            for name, each in sorted(self.counts.items())  # in whatever order shards have found them
        )

    def of_data(self, which: str) -> tuple[str, ...]:
        """A warning where data hold such values, or none.

        Args:
            which: ``calibration`` or ``evaluation``.
        """
        if not self.counts:
            return ()
        return (
            f"the {which} data hold values that are not finite: {self}; mend these samples or leave them out, and "
            "look at the transforms (a division by zero?)",
        )


class Watch:
    """What one pass of a model over the evaluation data is given and answers.

    Args:
        outputs: Names of the model's outputs.
    """

    def __init__(self, outputs: Sequence[str]) -> None:
        self._names = tuple(outputs)
        self._inputs, self._outputs = NonFinite(), NonFinite()

    def take(self, feed: Mapping[str, Any], outputs: Iterable[Any]) -> None:
        """Look at one batch."""
        self._inputs.take(feed, feed.values())
        self._outputs.take(self._names, outputs)

    @property
    def counts(self) -> tuple[Mapping[str, tuple[int, int]], Mapping[str, tuple[int, int]]]:
        """NaN and infinities of inputs and of outputs, by name, of those that hold any."""
        return self._inputs.counts, self._outputs.counts

    def add(self, inputs: Mapping[str, tuple[int, int]], outputs: Mapping[str, tuple[int, int]]) -> None:
        """Add what another one has counted."""
        self._inputs.add(inputs)
        self._outputs.add(outputs)

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the user: what of the data and of the outputs of fp32 is not finite."""
        if not self._outputs.counts:
            return self._inputs.of_data("evaluation")
        why = "see the data" if self._inputs.counts else "the data are finite, so look at the model and its weights"
        return (
            *self._inputs.of_data("evaluation"),
            f"the fp32 model's outputs on the evaluation data are not finite: {self._outputs}; every trial is compared "
            f"with an accuracy that rests on them ({why})",
        )


def listed(items: Iterable[str]) -> str:
    """The first of ``items``, and how many more there are."""
    every = list(items)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


__all__ = ["NonFinite", "Watch", "listed"]
