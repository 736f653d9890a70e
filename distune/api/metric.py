"""``distune.Metric``: a metric with its arguments, in the form of INC 2.x."""

from __future__ import annotations

from typing import Any

from distune.config.job import ComponentSpec
from distune.errors import UsageError


def Metric(metric_cls: type[Any] | None = None, name: str = "", **kwargs: Any) -> Any:
    """A metric for ``eval_metric``.

    Args:
        metric_cls: A class of your own with ``update``, ``reset`` and ``result``; it is called with ``kwargs``.
        name: Else the name of a metric of distune, e.g. ``topk`` with ``k=1``.

    Raises:
        UsageError: Neither is given.
    """
    if metric_cls is not None:
        return metric_cls(**kwargs)
    if not name:
        raise UsageError("Metric: give the name of a metric (name='topk', k=1) or a class of your own")
    return ComponentSpec(name, kwargs)
