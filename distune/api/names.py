"""What is registered, gathered from the rooms for those that check a configuration."""

from __future__ import annotations

from distune.config.known import KnownNames


def known_names() -> KnownNames:
    """Every registered name that a configuration may use, the package's own components included."""
    from distune.data.registry import datasets, filters, transforms
    from distune.metrics.base import metrics
    from distune.report.tracking.base import trackers
    from distune.strategies.registry import strategies

    return KnownNames(
        strategies={name: frozenset(cls.settings) for name, cls in strategies().items()},
        datasets=datasets(),
        transforms=transforms(),
        filters=filters(),
        metrics=metrics(),
        trackers=trackers(),
    )
