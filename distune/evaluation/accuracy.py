"""The accuracy of a model on the complete evaluation set, or by the user's ``eval_func``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distune.backends.base import Feed, InputInfo, RunnableModel
from distune.config.imports import import_object
from distune.config.job import ComponentSpec, EvaluationSpec
from distune.data.batch import Labels, arrays_of
from distune.data.loader import DataSource, open_dataloader
from distune.data.transform import Postprocess
from distune.data.user_code import guard, user_code
from distune.errors import DataError, UsageError
from distune.evaluation.callable_model import CallableModel
from distune.evaluation.feeds import to_feed
from distune.metrics.base import Metric, as_number, create_metric


@dataclass(frozen=True)
class Score:
    """What one evaluation said.

    Attributes:
        value: The accuracy: the only metric; the weighted mean where weights are given; else the first metric.
        metrics: Every metric by name; empty for an ``eval_func``.
        samples: Samples evaluated; 0 for an ``eval_func``, which does not tell.
        complete: The complete evaluation set was used.
        evaluate_s: Seconds in all.
        inference_s: Of that, seconds in the model's inference. For an ``eval_func`` only its calls of the model count,
            not what it runs on the native object.
    """

    value: float
    metrics: Mapping[str, float]
    samples: int
    complete: bool
    evaluate_s: float
    inference_s: float


@dataclass(frozen=True)
class _Prepared:
    """One batch, ready for the model."""

    feed: Feed
    labels: Labels
    size: int


class Evaluator:
    """Scores models on one evaluation set.

    Batches are formed and transformed once: feeds and labels stay in memory between models where they fit, else they
    are read again. The partition into batches is the same for every model (design: a model with dynamic quantization
    gives other numbers in other batches).

    Args:
        spec: How to score. Where ``eval_func`` is given it decides, and dataloader and metrics are not used.
        inputs: The model's inputs.
        outputs: Names of the model's outputs.
        seed: The job's seed.
        memory_limit: Bytes that prepared batches may take; a quarter of the available memory unless given.

    Raises:
        UsageError: Nothing to score with; names what is missing.
        DataError: The data or a metric cannot be used as described.
        UserCodeError: Code of the user raised.
    """

    def __init__(
        self,
        spec: EvaluationSpec,
        inputs: Sequence[InputInfo],
        outputs: Sequence[str],
        seed: int,
        memory_limit: int | None = None,
    ) -> None:
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._eval_func: Callable[..., Any] | None = None
        self._names = spec.names
        self._metrics: dict[str, Metric] = {}
        self._reference: list[Any] | None = None
        self._prepared: list[_Prepared] | None = None
        if spec.eval_func is not None:
            self._eval_func, self._eval_name = _resolve(spec.eval_func)
            return
        if spec.dataloader is None or not spec.metrics:
            raise UsageError("accuracy needs an eval_func, or a dataloader and at least one metric")
        self._source: DataSource = open_dataloader(spec.dataloader, seed)
        self._iteration = spec.iteration
        self._postprocess = Postprocess(spec.postprocess)
        self._memory_limit = _quarter_of_memory() if memory_limit is None else memory_limit
        self._metrics = _build_metrics(spec)
        self._weights = _weights(spec)
        self._directions = {
            name: metric.higher_is_better if given.higher_is_better is None else given.higher_is_better
            for (name, metric), given in zip(self._metrics.items(), spec.metrics, strict=True)
        }
        if self._weights is not None and len(set(self._directions.values())) > 1:
            raise DataError(
                f"metrics of different directions cannot be averaged: {self._directions} (name: higher is better); "
                "leave the weights out, and each must meet alone"
            )

    @property
    def source(self) -> DataSource | None:
        """The evaluation batches; ``None`` for an ``eval_func``."""
        return None if self._eval_func else self._source

    @property
    def metric_directions(self) -> Mapping[str, bool]:
        """Whether higher is better, by metric name; empty for an ``eval_func``."""
        return {} if self._eval_func else dict(self._directions)

    @property
    def needs_reference(self) -> bool:
        """True where a metric compares with the fp32 model's outputs (``compare_label: false``)."""
        return any(not metric.compare_label for metric in self._metrics.values())

    def set_reference(self, model: RunnableModel) -> None:
        """Run the fp32 model and keep its outputs as the labels of metrics with ``compare_label: false``."""
        if self.needs_reference:
            self._reference = [self._postprocessed(model.predict(b.feed), b.labels)[0] for b in self._batches()]

    def score(self, model: RunnableModel, parameters: Mapping[str, Any] | None = None) -> Score:
        """Evaluate a model on the complete evaluation set.

        Args:
            parameters: Keyword arguments of ``eval_func``: the user's own parameters.

        Raises:
            DataError: Data, model and metrics do not fit each other.
            UserCodeError: Code of the user raised, or ``eval_func`` returned something else than one number.
        """
        start = time.perf_counter()
        if self._eval_func is not None:
            return self._score_by_function(self._eval_func, model, start, parameters or {})
        if self.needs_reference and self._reference is None:
            raise DataError("a metric has compare_label: false, but the fp32 model was not set as the reference")
        for metric in self._metrics.values():
            metric.reset()
        samples, inference_s = 0, 0.0
        for index, batch in enumerate(self._batches()):
            before = time.perf_counter()
            raw = model.predict(batch.feed)
            inference_s += time.perf_counter() - before
            outputs, labels = self._postprocessed(raw, batch.labels)
            for name, metric in self._metrics.items():
                with guard(metric, f"metric {name!r}"):
                    metric.update(outputs, labels if metric.compare_label else self._reference_of(index))
            samples += batch.size
        results: dict[str, float] = {}
        for name, metric in self._metrics.items():
            with guard(metric, f"metric {name!r}"):
                results[name] = as_number(metric.result(), f"metric {name!r}: result()")
        value = self._value(results)
        if self._names:
            value, results = self._named(value, results, "the evaluation")
        return Score(value, results, samples, True, time.perf_counter() - start, inference_s)

    def _score_by_function(
        self, function: Callable[..., Any], model: RunnableModel, start: float, parameters: Mapping[str, Any]
    ) -> Score:
        callable_model = CallableModel(model, self._inputs)
        with user_code(self._eval_name):
            returned = function(callable_model, **parameters)
        results: dict[str, float] = {}
        if self._names and isinstance(returned, Mapping):
            results = {str(key): as_number(item, f"{self._eval_name}: {key}") for key, item in returned.items()}
            value, results = self._named(None, results, self._eval_name)
        else:
            value = as_number(returned, self._eval_name)
            if self._names:
                value, results = self._named(value, {}, self._eval_name)
        return Score(value, results, 0, True, time.perf_counter() - start, callable_model.seconds)

    def _named(self, value: float | None, results: Mapping[str, float], what: str) -> tuple[float, dict[str, float]]:
        """The accuracy and the metrics, by the names that ``tuning.metrics`` gives them.

        Where one metric is asked for and one number is there, that is it, whatever it is called.
        """
        found = dict(results)
        missing = [name for name in self._names if name not in found]
        if value is not None and len(missing) == 1 and len(found) <= 1:
            found[missing.pop()] = value
        if missing:
            given = ", ".join(sorted(found)) or "one number"
            raise UsageError(f"tuning.metrics asks for {', '.join(missing)}, and {what} gives {given}")
        return found[self._names[0]], found

    def _value(self, results: Mapping[str, float]) -> float:
        values = list(results.values())
        if self._weights is None:
            return values[0]
        return float(np.average(values, weights=self._weights))

    def _postprocessed(self, raw: Sequence[Any], labels: Labels) -> tuple[Any, Any]:
        if len(raw) != len(self._outputs):
            raise DataError(f"the model gave {len(raw)} outputs where it has {len(self._outputs)}: {self._outputs}")
        return self._postprocess((raw[0] if len(raw) == 1 else list(raw), labels))

    def _reference_of(self, index: int) -> Any:
        return None if self._reference is None else self._reference[index]

    def _batches(self) -> Iterator[_Prepared]:
        if self._prepared is not None:
            yield from self._prepared
            return
        kept: list[_Prepared] | None = []
        used = 0
        for batch in self._source:
            if 0 <= self._iteration <= batch.index:
                break
            prepared = _Prepared(to_feed(batch.inputs, self._inputs), batch.labels, batch.size)
            if kept is not None:
                used += sum(array.nbytes for array in (*prepared.feed.values(), *arrays_of(prepared.labels)))
                kept.append(prepared)
                if used > self._memory_limit:
                    kept = None
            yield prepared
        if kept is not None:
            self._prepared = kept


def _resolve(eval_func: str | Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    function = import_object(eval_func, "eval_func") if isinstance(eval_func, str) else eval_func
    name = eval_func if isinstance(eval_func, str) else getattr(eval_func, "__qualname__", type(eval_func).__name__)
    if not callable(function):
        raise UsageError(f"eval_func {name!r} is a {type(function).__name__}, which cannot be called with a model")
    return function, f"eval_func {name!r}"


def _build_metrics(spec: EvaluationSpec) -> dict[str, Metric]:
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


def _weights(spec: EvaluationSpec) -> list[float] | None:
    given = [metric.weight for metric in spec.metrics]
    weights = [weight for weight in given if weight is not None]
    if not weights:
        return None
    if len(weights) != len(given) or min(weights) < 0 or sum(weights) == 0:
        raise DataError(f"weights of metrics must be given to all or none, 0 or more and not all 0: {given}")
    return weights


def _quarter_of_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available) // 4
