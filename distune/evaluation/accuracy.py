"""The accuracy of a model: on the evaluation set, as far into it as is needed, or by the user's ``eval_func``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distune.backends.base import Feed, InputInfo, RunnableModel
from distune.config.job import EvaluationSpec
from distune.data.loader import DataSource, open_dataloader
from distune.data.user_code import user_code
from distune.errors import DataError, UsageError
from distune.evaluation.batches import EvaluationBatches, Prepared
from distune.evaluation.callable_model import CallableModel
from distune.evaluation.criterion import meets
from distune.evaluation.finite import Watch
from distune.evaluation.metric_set import MetricSet, by_names
from distune.evaluation.order import SampleOrder
from distune.evaluation.parts import resolve_eval_func
from distune.evaluation.ranking import DecisiveSamples, DecisiveScore
from distune.evaluation.survey import Survey
from distune.evaluation.verdict import Demand, VerdictBounds
from distune.metrics.base import as_number


@dataclass(frozen=True)
class Score:
    """What one evaluation said.

    Attributes:
        value: The accuracy: the only metric; the weighted mean where weights are given; else the first metric. NaN
            where the evaluation ended early.
        metrics: Every metric by name; empty for an ``eval_func``, and where the evaluation ended early.
        samples: Samples evaluated; 0 for an ``eval_func``, which does not tell.
        complete: The complete evaluation set was used.
        evaluate_s: Seconds in all.
        inference_s: Of that, seconds in the model's inference. For an ``eval_func`` only its calls of the model count,
            not what it runs on the native object.
        low, high: What the accuracy can be; both are ``value`` after a complete evaluation.
        verdict: Whether what was demanded is met; ``None`` where nothing was, or where it is not known.
        graded: Score on the decisive samples, where the evaluation went over them (``ranking.DecisiveScore``); of the
            model by whose margins they were chosen, the accuracy.
    """

    value: float
    metrics: Mapping[str, float]
    samples: int
    complete: bool
    evaluate_s: float
    inference_s: float
    low: float = math.nan
    high: float = math.nan
    verdict: bool | None = None
    graded: float | None = None


class Evaluator:
    """Scores models on one evaluation set.

    Batches are formed and transformed once: feeds and labels stay in memory between models where they fit, else they
    are read again. Once an order was given (``use``) the samples are scored in it, cut into batches of the same sizes;
    the partition into batches is the same for every model, except that those whose outputs depend on the batch
    (dynamic quantization) keep the user's own batches and are always scored in full.

    Args:
        spec: How to score. Where ``eval_func`` is given it decides, and dataloader and metrics are not used.
        inputs: The model's inputs.
        outputs: Names of the model's outputs.
        seed: The job's seed.
        memory_limit: Bytes that prepared batches may take; a quarter of the available memory unless given.
        go_on: Called before each batch; what it raises ends the evaluation. An ``eval_func`` is left to its end.
        higher_is_better: Direction of the accuracy, and so of a metric that says none.

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
        go_on: Callable[[], None] = lambda: None,
        higher_is_better: bool = True,
    ) -> None:
        self._inputs = tuple(inputs)
        self._go_on = go_on
        self._eval_func: Callable[..., Any] | None = None
        self._names = spec.names
        self._order: SampleOrder | None = None
        if spec.eval_func is not None:
            self._eval_func, self._eval_name = resolve_eval_func(spec.eval_func)
            return
        if spec.dataloader is None or not spec.metrics:
            raise UsageError("accuracy needs an eval_func, or a dataloader and at least one metric")
        self._source: DataSource = open_dataloader(spec.dataloader, seed)
        limit = quarter_of_memory() if memory_limit is None else memory_limit
        self._batches = EvaluationBatches(self._source, self._inputs, spec.iteration, limit)
        self._metrics = MetricSet(spec, outputs, higher_is_better)

    @property
    def source(self) -> DataSource | None:
        """The evaluation batches; ``None`` for an ``eval_func``."""
        return None if self._eval_func else self._source

    @property
    def samples(self) -> int:
        """Evaluation samples; 0 for an ``eval_func``, and until they were read once."""
        return 0 if self._eval_func else sum(self._batches.sizes)

    @property
    def metric_directions(self) -> Mapping[str, bool]:
        """Whether higher is better, by metric name; empty for an ``eval_func``."""
        return {} if self._eval_func else dict(self._metrics.directions)

    @property
    def needs_reference(self) -> bool:
        """True where a metric compares with the fp32 model's outputs (``compare_label: false``)."""
        return self._eval_func is None and self._metrics.needs_reference

    def set_reference(self, model: RunnableModel) -> None:
        """Run the fp32 model and keep its outputs as the labels of metrics with ``compare_label: false``."""
        if self.needs_reference:
            self._metrics.set_reference((model.predict(batch.feed), batch.labels) for batch in self._batches)

    def use(self, order: SampleOrder) -> None:
        """Score in this order from now on.

        Raises:
            DataError: The data have another number of samples than those that the order was made for.
        """
        if not self._batches.reorder():
            raise DataError("rank 0 puts the evaluation samples into another order, and here they cannot be reordered")
        if sum(self._batches.sizes) != len(order.parts):
            raise DataError(
                f"there are {sum(self._batches.sizes)} evaluation samples here and {len(order.parts)} on the rank that "
                f"scored fp32"
            )
        self._order = order

    @property
    def _can_bound(self) -> bool:
        return self._eval_func is None and self._metrics.can_bound

    @property
    def fp32_in_shards(self) -> bool:
        """Whether ``survey_fp32`` in shards gives, bit for bit, the score that one pass over all batches gives.

        That is where every metric is a function of exact sums over the samples, and none of the user's code.
        """
        return self._can_bound and all(form.ours for form in self._metrics.forms)

    def survey_fp32(self, model: RunnableModel, shard: int, shards: int, watch: Watch | None = None) -> Survey:
        """What the fp32 model says of the batches whose index is ``shard`` modulo ``shards``.

        All batches are read, and kept where they fit: every trial will need them.
        """
        survey = self._metrics.survey()
        self._survey(survey, self._begin(model, watch=watch), shard, shards)
        return survey

    def score_fp32(
        self,
        model: RunnableModel,
        parameters: Mapping[str, Any] | None = None,
        watch: Watch | None = None,
        in_order: bool = True,
        surveys: Sequence[bytes] = (),
    ) -> Score:
        """Score the fp32 model on the user's own batches, and take the order of the samples from what it says.

        Afterwards ``order`` is known, where there can be one: every metric has a per-sample form with bounds, the
        samples can be put into other batches, and the model is seen to say the same of them there.

        Args:
            in_order: An order is wanted.
            surveys: What the model says, where all shards were surveyed already (``Survey.encode``). It is run on one
                batch only then.

        Raises:
            DataError: The surveys are not of the batches that there are here.
        """
        if not surveys and not (in_order and self._can_bound):
            return self.score(model, parameters, watch=watch)
        survey = self._metrics.survey()
        if surveys:
            for blob in surveys:
                survey.join(blob)
            results, samples = survey.results(), sum(survey.sizes)
            value = self._metrics.combined(list(results.values()))
            score = Score(value, results, samples, True, survey.evaluate_s, survey.inference_s, value, value)
        else:
            start, run = time.perf_counter(), self._begin(model, watch=watch)
            self._survey(survey, run)
            score = self._complete(run, Demand(), start)
        if in_order and len(survey.sizes) > 1 and self._batches.reorder():
            self._order = self._found_order(survey, model)
        return score

    def _survey(self, survey: Survey, run: _Pass, shard: int = 0, shards: int = 1) -> None:
        start = time.perf_counter()
        for batch in self._batches:
            survey.see(batch)
            if batch.index % shards == shard:
                self._step(run, batch)
                survey.take(batch.index, self._metrics.outcomes(), self._metrics.margins())
        survey.evaluate_s, survey.inference_s = time.perf_counter() - start, run.inference_s

    def _found_order(self, survey: Survey, model: RunnableModel) -> SampleOrder | None:
        """The order, unless the model says something else of the samples in it."""
        if self._batches.sizes != survey.sizes:
            raise DataError(
                f"the evaluation data differ between the ranks: {sum(self._batches.sizes)} samples in "
                f"{len(self._batches.sizes)} batches here, {sum(survey.sizes)} in {len(survey.sizes)} where fp32 was "
                "scored"
            )
        order = survey.order()
        middle = order.nearest
        check = self._begin(model, order)
        self._step(check, next(self._batches.ordered(order.rows, [middle])))
        end = sum(survey.sizes[: middle + 1])
        rows = order.rows[end - survey.sizes[middle] : end]
        agrees = survey.agrees(rows, self._metrics.outcomes(), self._metrics.margins())
        return order if agrees else None

    @property
    def order(self) -> SampleOrder | None:
        """The order of the samples; ``None`` where they are scored as the data give them, and always in full."""
        return self._order

    def score(
        self,
        model: RunnableModel,
        parameters: Mapping[str, Any] | None = None,
        demand: Demand | None = None,
        own_batches: bool = False,
        watch: Watch | None = None,
        decisive: DecisiveSamples | None = None,
    ) -> Score:
        """Evaluate a model, on the complete evaluation set unless ``demand`` is answered before its end.

        Args:
            parameters: Keyword arguments of ``eval_func``: the user's own parameters.
            demand: What has to be found out. Without an order of the samples everything is.
            own_batches: The model's outputs depend on what else is in a batch: keep the user's batches.
            watch: Is shown what the model is given and answers.
            decisive: Where models are ranked: look at these samples first, and at others only where it promises to
                meet by them.

        Raises:
            DataError: Data, model and metrics do not fit each other.
            UserCodeError: Code of the user raised, or ``eval_func`` returned something else than one number.
        """
        start = time.perf_counter()
        if self._eval_func is not None:
            score = self._score_by_function(self._eval_func, model, start, parameters or {}, watch)
            met = _met(demand, score.metrics, score.value) if demand and demand.targets else None
            return replace(score, verdict=met)
        order = None if own_batches else self._order
        demand = demand or Demand()
        looked = None
        if decisive is not None and order is not None and demand.accuracy == "ranking":
            looked, promises = self._score_decisive(model, order, demand, decisive)
            if not promises:
                return looked
        run = self._begin(model, order, watch)
        if order is None:
            self._prepare(run, self._batches)
            for batch in self._batches:
                self._step(run, batch)
            return self._complete(run, demand, start)
        score = self._score_in_order(run, order, demand, start)
        if looked is None:
            return score
        return replace(score, graded=looked.graded, inference_s=score.inference_s + looked.inference_s)

    def survey(self, model: RunnableModel, demand: Demand) -> tuple[Score, DecisiveSamples | None]:
        """Evaluate a model completely, and find the samples that decide about those that differ from it a little.

        There are none where the samples have no order, or the metrics say no margins.
        """
        if self._order is None:
            return self.score(model, demand=demand), None
        start = time.perf_counter()
        survey = self._metrics.survey()
        run = self._begin(model, self._order)
        for batch in self._batches.ordered(self._order.rows, range(len(self._batches.sizes))):
            self._step(run, batch)
            survey.take(batch.index, self._metrics.outcomes(), self._metrics.margins())
        score = self._complete(run, demand, start)
        return replace(score, graded=score.value), survey.decisive(self._order.rows, self._batches.sizes[0])

    def _score_decisive(
        self, model: RunnableModel, order: SampleOrder, demand: Demand, decisive: DecisiveSamples
    ) -> tuple[Score, bool]:
        """The score on the decisive samples, and whether the model promises to meet what is demanded."""
        start = time.perf_counter()
        metrics = self._metrics
        graded = DecisiveScore(metrics.forms, decisive, order.totals, metrics.combined, demand.higher_is_better)
        bounds = VerdictBounds(metrics.forms, order.totals, self._metrics.combined, demand)
        run = replace(self._begin(model), partition=decisive.chosen)
        self._prepare(run, self._batches.of(decisive.rows, decisive.batch_size))
        for batch in self._batches.of(decisive.rows, decisive.batch_size):
            self._step(run, batch)
            bounds.take(self._metrics.outcomes())
            graded.take(self._metrics.outcomes(), self._metrics.margins())
        score = _ended(run, bounds, time.perf_counter() - start)
        return replace(score, graded=graded.value), _met(demand, graded.metrics, graded.accuracy)

    def _score_in_order(self, run: _Pass, order: SampleOrder, demand: Demand, start: float) -> Score:
        bounds = VerdictBounds(self._metrics.forms, order.totals, self._metrics.combined, demand)
        every = range(len(self._batches.sizes))
        if demand.accuracy == "exact":
            self._prepare(run, self._batches.ordered(order.rows, every))
        for batch in self._batches.ordered(order.rows, every):
            self._step(run, batch)
            bounds.take(self._metrics.outcomes())
            if run.samples < len(order.parts) and bounds.settled:
                return _ended(run, bounds, time.perf_counter() - start)
        return self._complete(run, demand, start)

    def _begin(self, model: RunnableModel, order: SampleOrder | None = None, watch: Watch | None = None) -> _Pass:
        self._metrics.reset()
        return _Pass(model, b"" if order is None else order.parts, watch)

    def _prepare(self, run: _Pass, batches: Iterable[Prepared]) -> None:
        """Announce batches that will be run whatever comes out."""
        read_s = 0.0

        def announced() -> Iterator[tuple[Hashable, Feed]]:
            nonlocal read_s
            coming = iter(batches)
            while True:
                before = time.perf_counter()
                batch = next(coming, None)
                read_s += time.perf_counter() - before
                if batch is None:
                    return
                self._go_on()
                yield (run.partition, batch.index), batch.feed

        start = time.perf_counter()
        run.model.prepare(announced())
        run.inference_s += time.perf_counter() - start - read_s

    def _step(self, run: _Pass, batch: Prepared) -> None:
        """Run one batch and give it to the metrics."""
        self._go_on()
        before = time.perf_counter()
        raw = run.model.predict_batch((run.partition, batch.index), batch.feed)
        run.inference_s += time.perf_counter() - before
        run.samples += batch.size
        if run.watch is not None:
            run.watch.take(batch.feed, raw)
        self._metrics.take(batch.index, raw, batch.labels)

    def _complete(self, run: _Pass, demand: Demand, start: float) -> Score:
        """The score after every batch was seen."""
        results = self._metrics.results()
        value = self._metrics.combined(list(results.values()))
        verdict = _met(demand, results, value) if demand.targets else None
        if self._names:
            value, results = by_names(self._names, value, results, "the evaluation")
        seconds = time.perf_counter() - start
        return Score(value, results, run.samples, True, seconds, run.inference_s, value, value, verdict)

    def _score_by_function(
        self,
        function: Callable[..., Any],
        model: RunnableModel,
        start: float,
        parameters: Mapping[str, Any],
        watch: Watch | None,
    ) -> Score:
        callable_model = CallableModel(model, self._inputs, watch)
        with user_code(self._eval_name):
            returned = function(callable_model, **parameters)
        results: dict[str, float] = {}
        if self._names and isinstance(returned, Mapping):
            results = {str(key): as_number(item, f"{self._eval_name}: {key}") for key, item in returned.items()}
            value, results = by_names(self._names, None, results, self._eval_name)
        else:
            value = as_number(returned, self._eval_name)
            if self._names:
                value, results = by_names(self._names, value, {}, self._eval_name)
        return Score(value, results, 0, True, time.perf_counter() - start, callable_model.seconds, value, value)


@dataclass
class _Pass:
    """One pass of a model over batches, in any order.

    Attributes:
        partition: Names the partition of the samples into batches; empty for the user's own.
        watch: Is shown what the model is given and answers.
    """

    model: RunnableModel
    partition: bytes = b""
    watch: Watch | None = None
    samples: int = 0
    inference_s: float = 0.0


def _ended(run: _Pass, bounds: VerdictBounds, seconds: float) -> Score:
    """What is known of a model after some of the samples."""
    return Score(
        value=math.nan,
        metrics={},
        samples=run.samples,
        complete=False,
        evaluate_s=seconds,
        inference_s=run.inference_s,
        low=bounds.accuracy.low,
        high=bounds.accuracy.high,
        verdict=False if bounds.failed else None,
    )


def _met(demand: Demand, metrics: Mapping[str, float], accuracy: float) -> bool:
    return all(
        meets(metrics.get(name, math.nan) if name else accuracy, target.value, target.higher_is_better)
        for name, target in demand.targets
    )


def quarter_of_memory() -> int:
    """Bytes: a quarter of what is available now."""
    import psutil

    return int(psutil.virtual_memory().available) // 4
