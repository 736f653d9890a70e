"""The sections ``tuning.parameters`` and ``tuning.metrics``, which a ``sigopt.yml`` has too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from distune.config.diagnostics import describe
from distune.config.faults import Context, Fault, FaultError, Section
from distune.config.parameters import ParameterSpec, TuningMetric, Value
from distune.config.values import Number, Text, checked
from distune.config.yaml_nodes import Empty


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise FaultError.of(f"expected a list of at least two values, got {describe(value)}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | float | str):
            raise FaultError.of(f"expected numbers or texts, got {describe(item)}", str(item))
    if len(set(value)) < len(value):
        raise FaultError.of("a value is given twice")
    return list(value)


def _grid(value: Any) -> tuple[Value, ...]:
    return tuple(_as_number(item) for item in _listed(value))


def _categories(value: Any) -> tuple[Value, ...]:
    if isinstance(value, list | tuple):
        value = [item["name"] if isinstance(item, dict) and set(item) == {"name"} else item for item in value]
    return tuple(_listed(value))


def _as_number(item: Value) -> Value:
    """Texts that are numbers: YAML reads ``1e-5`` as text."""
    try:
        return float(item) if isinstance(item, str) else item
    except ValueError:
        raise FaultError.of(f"expected a number, got {describe(item)}", str(item)) from None


class Bounds(Section):
    """Both ends of a range, included."""

    min: Number = Field(description="Lower end.")
    max: Number = Field(description="Upper end.")

    def check_values(self, context: Context) -> Iterator[Fault]:
        if self.min >= self.max:
            yield Fault(f"min must be below max, got {self.min:g} and {self.max:g}", ("min",))


class ParameterSection(Section):
    """A parameter of one's own, in the form of a ``sigopt.yml``."""

    name: Text = Field(description="Keyword under which eval_func gets the value.")
    type: Literal["int", "double", "categorical"] = Field(description="Kind of its values.")
    bounds: Bounds | None = Field(None, description="Range of an int or double.")
    grid: Annotated[tuple[Value, ...], checked(_grid)] | None = Field(None, description="All values that it may have.")
    categorical_values: Annotated[tuple[Value, ...], checked(_categories)] | None = Field(
        None, description="All values of a categorical parameter."
    )
    transformation: Literal["log"] | None = Field(None, description="log: searched evenly in the logarithm.")
    default: Any = Field(None, description="Value that the fp32 model is judged with.")

    @classmethod
    def normalise(cls, data: Any) -> Any:
        # `bounds:` with its keys on the wrong level, as in SigOpt's own examples
        empty = (
            isinstance(data, dict)
            and "bounds" in data
            and (data["bounds"] is None or isinstance(data["bounds"], Empty))
        )
        if empty and {"min", "max"} <= data.keys():
            kept = {key: value for key, value in data.items() if key not in ("min", "max")}
            return {**kept, "bounds": {"min": data["min"], "max": data["max"]}}
        return data

    def check_values(self, context: Context) -> Iterator[Fault]:
        given = [key for key in ("bounds", "grid", "categorical_values") if getattr(self, key) is not None]
        wanted = ("categorical_values",) if self.type == "categorical" else ("bounds", "grid")
        if len(given) != 1 or given[0] not in wanted:
            yield Fault(f"a parameter of type {self.type} takes {' or '.join(wanted)}, and only that", ("type",))
            return
        numbers = [*(self.grid or ())] if self.bounds is None else [self.bounds.min, self.bounds.max]
        if self.type == "int" and any(float(number) != math.floor(float(number)) for number in numbers):
            yield Fault("expected whole numbers", (given[0],))
        if self.transformation and self.type != "double":
            yield Fault("transformation: log is for parameters of type double", ("transformation",))
        elif self.transformation and min(float(number) for number in numbers) <= 0:
            yield Fault("transformation: log needs values above 0", (given[0],))
        if self.default is not None and not self._allows(self.default):
            yield Fault(f"{self.default!r} is no value of this parameter", ("default",))

    def _allows(self, value: Any) -> bool:
        values = self.grid or self.categorical_values
        if values is not None:
            return value in values
        if self.bounds is None or isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.bounds.min <= value <= self.bounds.max and (self.type == "double" or value == int(value))

    def spec(self) -> ParameterSpec:
        """The parameter as the job has it."""
        values = self.grid or self.categorical_values or ()
        if self.type == "int":
            values = tuple(int(value) for value in values)
        elif self.type == "double":
            values = tuple(float(value) for value in values)
        low, high = (self.bounds.min, self.bounds.max) if self.bounds is not None else (0.0, 0.0)
        return ParameterSpec(self.name, self.type, values, low, high, self.transformation == "log", self.default)


class MetricSection(Section):
    """A metric to optimize, to keep or to write down, in the form of a ``sigopt.yml``."""

    name: Text = Field(description="Name of the metric.")
    objective: Literal["maximize", "minimize"] = Field("maximize", description="Direction.")
    strategy: Literal["optimize", "store", "constraint"] = Field("optimize", description="What it is for.")
    threshold: Number | None = Field(None, description="Bound that a constraint must keep.")

    @classmethod
    def normalise(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) and data else data

    def check_values(self, context: Context) -> Iterator[Fault]:
        if self.strategy == "constraint" and self.threshold is None:
            yield Fault("a constraint needs a threshold", ("strategy",))
        if self.strategy != "constraint" and self.threshold is not None:
            yield Fault("only a metric with strategy: constraint has a threshold", ("threshold",), "key")

    def spec(self) -> TuningMetric:
        """The metric as the job has it."""
        return TuningMetric(self.name, self.objective, self.strategy, self.threshold)


def check_names(sections: Any, key: str) -> Iterator[Fault]:
    """Faults of names that are given twice, in the raw list under ``key``."""
    seen: set[Any] = set()
    for index, section in enumerate(sections if isinstance(sections, list | tuple) else ()):
        name = section.get("name") if isinstance(section, Mapping) else section
        if isinstance(name, str) and name in seen:
            yield Fault(f"{name!r} is given twice", (key, index))
        if isinstance(name, str):
            seen.add(name)
