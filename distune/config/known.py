"""Names that rooms above know, handed down so that the configuration can check them without importing those rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Parameters = frozenset[str] | None
"""Names of a component's keyword arguments; ``None`` where they are not checked."""


@dataclass(frozen=True)
class KnownNames:
    """What is registered, by name. An empty mapping is not checked at all.

    Attributes:
        strategies: Settings (``strategy_kwargs``) of each strategy.
        datasets, transforms, filters, metrics: Arguments of each component.
        recipes: Recipes that some backend knows.
        trackers: Arguments of each tracker.
    """

    strategies: Mapping[str, Parameters] = field(default_factory=dict)
    datasets: Mapping[str, Parameters] = field(default_factory=dict)
    transforms: Mapping[str, Parameters] = field(default_factory=dict)
    filters: Mapping[str, Parameters] = field(default_factory=dict)
    metrics: Mapping[str, Parameters] = field(default_factory=dict)
    recipes: Mapping[str, Parameters] = field(default_factory=dict)
    trackers: Mapping[str, Parameters] = field(default_factory=dict)
