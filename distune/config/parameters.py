"""Parameters and metrics of the user's own, in the terms of SigOpt: what is tuned beside the ops, and by what.

They come from ``tuning.parameters`` and ``tuning.metrics`` of a configuration, or from a ``sigopt.yml``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Value = int | float | str

MEASURED = {"latency": "performance", "size": "modelsize", "footprint": "footprint"}
"""Metrics that distune measures itself, with the objective that each is."""

GRID_POINTS = 1001
"""Values of a double between its bounds that are told apart, ends included."""

_WHOLE_LIMIT = 10_000


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter.

    Attributes:
        name: Keyword under which the user's function gets it.
        kind: ``int``, ``double`` or ``categorical``.
        values: All values of a categorical parameter or a grid, in the order written; empty where bounds are given.
        low, high: Bounds, both included.
        log: Search evenly in the logarithm (``transformation: log``).
        default: Used for the fp32 model; ``None`` means the first value, or the lower bound.
    """

    name: str
    kind: Literal["int", "double", "categorical"]
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    default: Value | None = None

    @property
    def first(self) -> Value:
        """The value that the fp32 model is judged with."""
        if self.default is not None:
            return self.default
        return self.values[0] if self.values else self._typed(self.low)

    @property
    def is_grid(self) -> bool:
        """True where the parameter has no values but the ones written, or whole numbers."""
        return bool(self.values) or self.kind == "int"

    @property
    def choices(self) -> tuple[Value, ...]:
        """What strategies that count choose from.

        A double between bounds becomes ``GRID_POINTS`` evenly spaced values; a step is a thousandth of the range (of
        its logarithm), below what a noisy measurement can tell apart. So does an int with more than 10,000 values. The
        default is among them.
        """
        if self.values:
            return self.values
        if self.kind == "int" and self.high - self.low <= _WHOLE_LIMIT:
            return tuple(range(int(self.low), int(self.high) + 1))
        return tuple(sorted({*self._spread(), self._typed(self.first)}, key=float))

    def _typed(self, value: Any) -> Value:
        return int(value) if self.kind == "int" else float(value)

    def _spread(self) -> set[Value]:
        """Evenly spaced values, both bounds among them."""
        steps = [step / (GRID_POINTS - 1) for step in range(GRID_POINTS)]
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            inner = [10 ** (low + (high - low) * step) for step in steps[1:-1]]
        else:
            inner = [self.low + (self.high - self.low) * step for step in steps[1:-1]]
        return {self._typed(self.low), *(self._typed(value) for value in inner), self._typed(self.high)}

    def nearest(self, value: Value) -> int:
        """Index of the choice that is nearest to ``value``; exact for categorical ones."""
        choices = self.choices
        if self.kind == "categorical":
            return choices.index(value)
        wanted = float(value)
        return min(range(len(choices)), key=lambda index: abs(float(choices[index]) - wanted))

    def to_sigopt(self) -> dict[str, Any]:
        """The parameter as SigOpt describes it."""
        body: dict[str, Any] = {"name": self.name, "type": self.kind}
        if self.kind == "categorical":
            body["categorical_values"] = [{"name": str(value)} for value in self.values]
        elif self.values:
            body["grid"] = sorted(self.values, key=float)
        else:
            whole = self.kind == "int"
            body["bounds"] = (
                {"min": int(self.low), "max": int(self.high)} if whole else {"min": self.low, "max": self.high}
            )
        if self.log:
            body["transformation"] = "log"
        return body

    def from_sigopt(self, value: Any) -> Value:
        """A value as SigOpt suggests it, in the parameter's own type."""
        if self.kind == "categorical":
            return next(choice for choice in self.values if str(choice) == str(value))
        if self.values:
            return self.values[self.nearest(value)]  # a grid on a log scale comes back rounded
        return self._typed(value)


@dataclass(frozen=True)
class TuningMetric:
    """One metric of ``tuning.metrics``.

    Attributes:
        name: As ``eval_func`` or the evaluation's metrics call it; ``MEASURED`` ones are distune's own.
        objective: Direction.
        strategy: ``optimize``; ``constraint`` must keep ``threshold``; ``store`` is only written to the result.
        threshold: Bound of a constraint: a lower one where the metric is maximized, else an upper one.
    """

    name: str
    objective: Literal["maximize", "minimize"] = "maximize"
    strategy: Literal["optimize", "store", "constraint"] = "optimize"
    threshold: float | None = None

    @property
    def higher_is_better(self) -> bool:
        """True where it is maximized."""
        return self.objective == "maximize"

    def to_sigopt(self) -> dict[str, Any]:
        """The metric as SigOpt describes it."""
        body: dict[str, Any] = {"name": self.name, "objective": self.objective, "strategy": self.strategy}
        return body if self.threshold is None else {**body, "threshold": self.threshold}


def defaults(parameters: Iterable[ParameterSpec]) -> tuple[tuple[str, Value], ...]:
    """The parameters that the fp32 model is judged with, sorted by name."""
    return tuple(sorted((parameter.name, parameter.first) for parameter in parameters))
