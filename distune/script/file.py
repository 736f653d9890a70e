"""``sigopt.yml``: name, parameters, metrics and budget of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from distune.config.faults import Context, Fault, Section
from distune.config.load import load_section
from distune.config.parameters import ParameterSpec, TuningMetric
from distune.config.schema_parameters import MetricSection, ParameterSection, check_names
from distune.config.values import Text, Whole


class SigOptFile(Section):
    """An experiment."""

    name: Text = Field("experiment", description="Name of the experiment.")
    parameters: tuple[ParameterSection, ...] = Field(min_length=1, description="What is tuned.")
    metrics: tuple[MetricSection, ...] = Field(min_length=1, description="What is optimized, kept or stored.")
    budget: Whole = Field(30, ge=1, description="Trials.")
    parallel_bandwidth: Whole = Field(1, ge=1, description="Trials at once.")

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        yield from check_names(data.get("parameters"), "parameters")
        yield from check_names(data.get("metrics"), "metrics")

    def check_values(self, context: Context) -> Iterator[Fault]:
        if all(metric.strategy == "store" for metric in self.metrics):
            yield Fault("nothing to look for: no metric is optimized or constrained", ("metrics",))


@dataclass(frozen=True)
class ScriptExperiment:
    """What to tune a script or function by.

    Attributes:
        budget: Trials.
        parallel: Trials at once.
    """

    name: str
    parameters: tuple[ParameterSpec, ...]
    metrics: tuple[TuningMetric, ...]
    budget: int
    parallel: int


def load_experiment(path: Path) -> ScriptExperiment:
    """Read a ``sigopt.yml``.

    Raises:
        ConfigError: Lists every problem with its position.
    """
    file = load_section(path, SigOptFile)
    return ScriptExperiment(
        file.name,
        tuple(parameter.spec() for parameter in file.parameters),
        tuple(metric.spec() for metric in file.metrics),
        file.budget,
        file.parallel_bandwidth,
    )
