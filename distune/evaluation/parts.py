"""What an evaluation is made of: the user's function, or metrics and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distune.config.imports import import_object
from distune.config.job import ComponentSpec, EvaluationSpec
from distune.errors import DataError, UsageError
from distune.metrics.base import Metric, create_metric


def resolve_eval_func(eval_func: str | Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    """The user's function, and what to call it in messages."""
    function = import_object(eval_func, "eval_func") if isinstance(eval_func, str) else eval_func
    name = eval_func if isinstance(eval_func, str) else getattr(eval_func, "__qualname__", type(eval_func).__name__)
    if not callable(function):
        raise UsageError(f"eval_func {name!r} is a {type(function).__name__}, which cannot be called with a model")
    return function, f"eval_func {name!r}"


def build_metrics(spec: EvaluationSpec) -> dict[str, Metric]:
    """Metrics by name; of two with the same name the later ones get their arguments or a number behind it."""
    built: dict[str, Metric] = {}
    for given in spec.metrics:
        metric = create_metric(given.metric)
        if isinstance(given.metric, ComponentSpec):
            name = given.metric.name.rpartition(":")[2]
            detail = ", ".join(f"{key}={value}" for key, value in given.metric.args.items())
        else:
            live = given.metric
            name, detail = live.__name__ if isinstance(live, type) else type(live).__name__, ""
        if name in built and detail:
            name = f"{name}({detail})"
        number = sum(known == name or known.startswith(f"{name}#") for known in built)
        built[f"{name}#{number + 1}" if number else name] = metric
    return built


def metric_weights(spec: EvaluationSpec) -> list[float] | None:
    """One weight for each metric, ``None`` where none is given."""
    given = [metric.weight for metric in spec.metrics]
    weights = [weight for weight in given if weight is not None]
    if not weights:
        return None
    if len(weights) != len(given) or min(weights) < 0 or sum(weights) == 0:
        raise DataError(f"weights of metrics must be given to all or none, 0 or more and not all 0: {given}")
    return weights
