"""``Runner``: answers requests on a worker, from ``Inspect`` to ``Export``.

It joins a backend with data and evaluation and knows nothing of ranks, transports or decisions. Whatever goes wrong
becomes a ``Failure``: a worker that raises would take its rank along.
"""

from __future__ import annotations

import gc
import hashlib
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from distune.backends.base import Backend, Feed, LabelledBatch, RunnableModel, backend_class
from distune.config.job import TuningJob
from distune.config.parameters import defaults
from distune.data.loader import DataSource, open_dataloader
from distune.data.user_code import user_traceback
from distune.errors import CancelledError, DataError, TrialError, UsageError, UserCodeError
from distune.evaluation.accuracy import Evaluator, Score, quarter_of_memory
from distune.evaluation.criterion import Target
from distune.evaluation.feeds import first_feed, to_feed, zeros_feed
from distune.evaluation.finite import NonFinite, Watch
from distune.evaluation.footprint import peak_resident_bytes
from distune.evaluation.latency import measure
from distune.evaluation.order import SampleOrder
from distune.evaluation.ranking import DecisiveSamples
from distune.evaluation.verdict import Demand
from distune.space.op_config import FP32, TuningConfig
from distune.trial import messages as m
from distune.trial.inspection import inspect

_PROBE_BATCHES = 2


class Runner:
    """Executes requests, one at a time, in the order in which they are given.

    The backend, the data and the evaluator are made when first needed and kept. Of trials only the last loaded model
    is kept, so that measuring or exporting what was just judged does not quantize it again.

    Args:
        job: The run's job.
        host, rank: Where this worker is, for messages; without a host they do not say it.
        threads: Intra-op threads of everything but latency and footprint.
        clock: Monotonic seconds.
    """

    def __init__(
        self, job: TuningJob, host: str, rank: int, threads: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._host = host
        self._rank = rank
        self._threads = threads
        self._clock = clock
        self._began = clock()
        self._backend_: Backend | None = None
        self._evaluator_: Evaluator | None = None
        self._has_reference = False
        self._evaluation_: DataSource | None = None
        self._calibration_: DataSource | None = None
        self._pending: list[m.LoadStatistics] = []
        self._order: SampleOrder | None = None
        self._opened: m.StageOpened | None = None
        self._loaded: tuple[tuple[str, int, bool], RunnableModel] | None = None
        self._is_unwanted: Callable[[], bool] = lambda: False

    # ---------------------------------------------------------------------------------------------- what a worker does

    def answer(self, request: m.Request) -> m.Result:
        """Do what ``request`` asks. Never raises, but for ``KeyboardInterrupt``; times count from construction."""
        start = self._clock() - self._began
        body: m.ResultBody
        try:
            body = self._answer(request.body)
        except (Exception, SystemExit) as error:
            body = self._failure(error)
        if isinstance(body, m.Failure):
            # What the failed trial held hangs in cycles of frames and tracebacks; the next one needs the memory.
            self._loaded = None
            gc.collect()
        end = self._clock() - self._began
        return m.Result(request.id, request.attempt, self._rank, body, request.run, start, end)

    def stop_where(self, is_unwanted: Callable[[], bool]) -> None:
        """Ask between batches whether the request in hand is wanted no longer; it is answered as ``cancelled`` then."""
        self._is_unwanted = is_unwanted

    def receive(self, broadcast: m.Broadcast) -> None:
        """Take in what is sent to every worker. Statistics reach the backend with the next request that needs it."""
        if isinstance(broadcast, m.LoadStatistics):
            self._pending.append(broadcast)
        elif isinstance(broadcast, m.UseOrder):
            self._order = SampleOrder.decode(broadcast.order)
        elif isinstance(broadcast, m.StageOpened):
            self._opened = broadcast
        else:
            self._opened = None
            if self._backend_ is not None:
                self._backend_.share(None)
            if self._loaded is not None and self._loaded[0][0] != broadcast.base:
                self._loaded = None

    def close(self) -> None:
        """Free what is held. May be called twice."""
        self._loaded = self._evaluator_ = self._evaluation_ = self._calibration_ = None
        self._has_reference = False
        backend, self._backend_ = self._backend_, None
        if backend is not None:
            backend.close()

    # ---------------------------------------------------------------------------------------------------------- bodies

    def _answer(self, body: m.RequestBody) -> m.ResultBody:
        backend = self._backend()
        config: TuningConfig | None = getattr(body, "config", None)
        what = m.Baseline if isinstance(body, m.Survey) else type(body)  # fp32 on the same data, by one or by many
        self._seed(config.hash if config is not None else what.__name__)
        match body:
            case m.Inspect():
                return self._inspect(backend)
            case m.Survey():
                return self._survey(body)
            case m.Baseline():
                return self._baseline(body)
            case m.Calibrate():
                return self._calibrate(body)
            case m.Judge():
                return self._judge(body)
            case m.MeasureLatency():
                return self._latency(body.config)
            case m.MeasureFootprint():
                return self._footprint(body.config)
            case m.Probe():
                return self._probe(body)
            case m.Diagnose():
                return self._diagnose(body)
            case m.Export():
                return self._export(body.config)

    def _inspect(self, backend: Backend) -> m.Inspection:
        spec = self._job.evaluation
        in_shards = spec.can_judge and spec.eval_func is None and self._evaluator().fp32_in_shards
        return inspect(self._job, backend, self._evaluation(), self._calibration(), self._threads, in_shards)

    def _calibrate(self, body: m.Calibrate) -> m.Statistics:
        start = self._clock()
        backend, source = self._backend(), self._calibration()
        if source is None:
            raise DataError("calibration needs data: give quantization.calibration.dataloader")
        infos = backend.facts().inputs
        samples = 0
        nonfinite = NonFinite()

        def batches() -> Any:
            nonlocal samples
            for batch in source.head(body.sampling_size, body.shard, body.shards):
                self._go_on()
                samples += batch.size
                feed = to_feed(batch.inputs, infos)
                nonfinite.take(feed, feed.values())
                yield batch.index, feed

        backend.prepare_calibration(body.sampling_size, body.histograms)
        blob = backend.calibrate(body.variant, batches())
        return m.Statistics(blob, samples, self._clock() - start, nonfinite.counts)

    def _survey(self, body: m.Survey) -> m.Surveyed:
        watch = Watch(self._backend().facts().outputs)
        survey = self._evaluator().survey_fp32(self._load(None, self._threads), body.shard, body.shards, watch)
        return m.Surveyed(survey.encode(), survey.data, *watch.counts)

    def _baseline(self, body: m.Baseline) -> m.Accuracy:
        evaluator, model = self._referenced(), self._load(None, self._threads)
        parameters = dict(defaults(self._job.parameters))
        watch = Watch(self._backend().facts().outputs)
        for surveyed in body.surveys:
            watch.add(surveyed.inputs, surveyed.outputs)
        blobs = [surveyed.blob for surveyed in body.surveys]
        score = evaluator.score_fp32(model, parameters, watch, self._job.early_verdict, blobs)
        order = "" if evaluator.order is None else evaluator.order.encode()
        answer = _accuracy(score, model)
        warnings = (*answer.warnings, *watch.warnings)
        return replace(answer, directions=evaluator.metric_directions, order=order, warnings=warnings)

    def _judge(self, body: m.Judge) -> m.Accuracy:
        evaluator = self._referenced()
        if self._order is not None and evaluator.order is not self._order:
            evaluator.use(self._order)
        self._share(evaluator, body)
        start = self._clock()
        model = self._load(body.config, self._threads, body.deployed)
        quantize_s = self._clock() - start
        compiled_s = model.compile_s
        # Ranges taken at run time are those of the whole batch, so that each sample's outputs depend on the others.
        own_batches = any(op.mode == "dynamic" for _, op in body.config.ops)
        wanted, found = _demand(body), None
        if body.accuracy == "survey" and not own_batches:
            score, found = evaluator.survey(model, wanted)
        else:
            decisive = DecisiveSamples.decode(body.decisive) if body.decisive else None
            score = evaluator.score(model, dict(body.config.parameters), wanted, own_batches, decisive=decisive)
        compile_s = model.compile_s - compiled_s
        return replace(
            _accuracy(score, model),
            decisive="" if found is None else found.encode(),
            size_bytes=model.size_bytes,
            quantize_s=quantize_s,
            inference_s=max(0.0, score.inference_s - compile_s),
            compile_s=compile_s,
        )

    def _share(self, evaluator: Evaluator, body: m.Judge) -> None:
        """Tell the backend, once a stage, what its trials have in common."""
        samples = len(DecisiveSamples.decode(body.decisive).rows) if body.decisive else evaluator.samples
        if self._opened is not None and samples and self._job.shared_prefix_bytes:
            free = quarter_of_memory()  # which the other ranks of the node see as well
            share = self._job.limits.memory_bytes
            limit = min(self._job.shared_prefix_bytes, free if share is None else min(free, share // 4))
            self._backend().share(self._opened.base, samples, limit)
            self._opened = None

    def _latency(self, config: TuningConfig) -> m.Latency:
        spec = self._job.evaluation.performance
        threads = spec.cores_per_instance
        feed = self._sample_feed(spec.batch_size)
        candidate = self._load(config, threads)
        baseline = self._backend().load(None, threads)
        compiled_s = candidate.compile_s + baseline.compile_s
        runs = candidate.timed(feed), baseline.timed(feed)
        compiled_s = candidate.compile_s + baseline.compile_s - compiled_s
        timed = measure(*runs, warmup=spec.warmup, iteration=spec.iteration)
        return m.Latency(
            ratio=timed.ratio,
            ci_low=timed.ci_low,
            ci_high=timed.ci_high,
            candidate_ms=timed.candidate_ms,
            baseline_ms=timed.baseline_ms,
            batch_size=spec.batch_size,
            threads=threads,
            blocks=timed.blocks,
            host=self._host,
            noisy=timed.noisy,
            seconds=timed.seconds,
            ratios=timed.ratios,
            compile_s=compiled_s,
        )

    def _footprint(self, config: TuningConfig) -> m.Footprint:
        backend, spec = self._backend(), self._job.evaluation.performance
        if not backend.standalone:
            raise TrialError(f"the backend of {self._job.model.framework} cannot measure the memory footprint")
        feed = self._sample_feed(spec.batch_size)
        # fp32 by the same road as the candidate, so that the two differ in nothing but quantization.
        fp32 = TuningConfig(tuple((name, FP32) for name, _ in config.ops))
        peaks = [
            peak_resident_bytes(backend.standalone, backend.export(each), feed, spec.cores_per_instance)
            for each in (config, fp32)
        ]
        return m.Footprint(candidate_bytes=peaks[0], baseline_bytes=peaks[1])

    def _probe(self, body: m.Probe) -> m.ProbeAnswer:
        start = self._clock()
        backend = self._backend()
        source = self._calibration() or self._evaluation()
        if source is None:
            raise DataError(f"probe {body.kind!r} needs data: give quantization.calibration.dataloader")
        wanted = int(body.args.get("batches", _PROBE_BATCHES))
        infos = backend.facts().inputs
        head = source.head(wanted * source.batch_size, body.shard, body.shards)
        batches = [LabelledBatch(batch.index, to_feed(batch.inputs, infos), batch.labels) for batch in head]
        scores: Mapping[str, float] = {}
        if batches and body.kind in backend.labelled_probes:
            scores = backend.probe_labelled(body.kind, body.config, body.ops, batches, body.args)
        elif batches:
            scores = backend.probe(body.kind, body.config, body.ops, [batch.feed for batch in batches], body.args)
        return m.ProbeAnswer(scores, seconds=self._clock() - start)

    def _diagnose(self, body: m.Diagnose) -> m.ProbeAnswer:
        start = self._clock()
        backend = self._backend()
        source = self._calibration() or self._evaluation()
        if source is None and body.tensors != "weight":
            raise DataError("tensors are compared on data: give quantization.calibration.dataloader")
        infos = backend.facts().inputs
        wanted = {number - 1 for number in body.batches}
        head = () if source is None else source.head((max(wanted) + 1) * source.batch_size)
        feeds = [to_feed(batch.inputs, infos) for batch in head if batch.index in wanted]
        if source is not None and len(feeds) < len(wanted):
            raise DataError(f"there is no batch {max(wanted) + 1} to compare tensors on: the data have fewer")
        found = backend.diagnose(body.config, body.ops, feeds, body.tensors)
        return m.ProbeAnswer({}, found, self._clock() - start)

    def _export(self, config: TuningConfig) -> m.Exported:
        exported = self._backend().export(config)
        model = self._load(config, self._threads)
        return m.Exported(exported.files, exported.deploy, model.ops_executed_int8, model.reasons)

    # ------------------------------------------------------------------------------------------- what is kept and made

    def _backend(self) -> Backend:
        if self._backend_ is None:
            self._backend_ = backend_class(self._job.model.framework, self._job.approach)(self._job)
        while self._pending:
            statistics = self._pending[0]
            self._backend_.set_statistics(statistics.variant, statistics.sampling_size, statistics.blob)
            self._pending.pop(0)
        return self._backend_

    def _evaluator(self) -> Evaluator:
        if self._evaluator_ is None:
            facts = self._backend().facts()
            self._evaluator_ = Evaluator(
                self._job.evaluation,
                facts.inputs,
                facts.outputs,
                self._job.seed,
                go_on=self._go_on,
                higher_is_better=self._job.criterion.higher_is_better,
            )
        return self._evaluator_

    def _referenced(self) -> Evaluator:
        """The evaluator, with the fp32 model's outputs where a metric compares with them."""
        evaluator = self._evaluator()
        if evaluator.needs_reference and not self._has_reference:
            evaluator.set_reference(self._backend().load(None, self._threads))
            self._has_reference = True
        return evaluator

    def _go_on(self) -> None:
        """Between two batches.

        Raises:
            CancelledError: The request in hand is wanted no longer.
        """
        if self._is_unwanted():
            raise CancelledError("cancelled by the master")

    def _evaluation(self) -> DataSource | None:
        """The evaluation data, where there are any; a user's ``eval_func`` brings its own."""
        spec = self._job.evaluation
        if self._evaluation_ is None and spec.dataloader is not None:
            judged = self._evaluator().source if spec.can_judge else None
            self._evaluation_ = judged or open_dataloader(spec.dataloader, self._job.seed)
        return self._evaluation_

    def _calibration(self) -> DataSource | None:
        spec = self._job.calibration.dataloader
        if self._calibration_ is None and spec is not None:
            self._calibration_ = open_dataloader(spec, self._job.seed)
        return self._calibration_

    def _load(self, config: TuningConfig | None, threads: int, deployed: bool = False) -> RunnableModel:
        key = ("" if config is None else config.hash, threads, deployed)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # before the next one is made: two models at once may be one too many
            backend = self._backend()
            if config is not None and deployed:
                self._loaded = (key, backend.load_deployed(config, threads))
            else:
                self._loaded = (key, backend.load(config, threads))
        return self._loaded[1]

    def _sample_feed(self, batch_size: int) -> Feed:
        infos = self._backend().facts().inputs
        source = self._evaluation() or self._calibration()
        if source is not None:
            return first_feed(source, infos, batch_size)
        return zeros_feed(infos, batch_size)

    def _seed(self, what: str) -> None:
        """The same random numbers for the same work, whatever ran before it and on whichever rank."""
        digest = hashlib.sha256(f"{self._job.seed}:{what}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        random.seed(seed)
        np.random.seed(seed)
        torch = sys.modules.get("torch")  # only where a backend or the user's code has brought it
        if torch is not None:
            torch.manual_seed(seed)

    def _failure(self, error: BaseException) -> m.Failure:
        where = f"rank {self._rank} on {self._host}: " if self._host else ""
        name = type(error).__name__
        text = str(error) or name
        if isinstance(error, CancelledError):
            return m.Failure("cancelled", f"{where}{text}")
        if isinstance(error, UserCodeError):
            head, _, rest = text.partition("\n")
            return m.Failure("user_error", f"{where}{head}", rest, name, usage=True)
        if isinstance(error, UsageError):
            return m.Failure("error", f"{where}{text}", "", name, usage=True)
        if isinstance(error, SystemExit):
            ended = f"{where}the user's code ended the process (sys.exit)"
            return m.Failure("user_error", ended, user_traceback(error), name, usage=True)
        # What we say ourselves says it all; lines of ours and of frameworks below would only bury it.
        detail = "" if isinstance(error, TrialError) else "".join(traceback.format_exception(error)).rstrip()
        # Frameworks pass on C++'s own exception under classes of theirs.
        if isinstance(error, MemoryError) or "bad_alloc" in text:
            return m.Failure("memory", f"{where}out of memory ({text})", detail, name)
        shown = text if isinstance(error, TrialError) else f"{name}: {text}"
        return m.Failure("error", f"{where}{shown}", detail, name)


def _demand(body: m.Judge) -> Demand:
    """What is to be found out; nothing less than everything where ``exact`` is asked for."""
    targets = tuple((name, Target(value, higher)) for name, value, higher in body.targets)
    if not targets and body.target is not None:
        targets = (("", Target(body.target, body.higher_is_better)),)
    accuracy = "exact" if body.accuracy == "survey" else body.accuracy
    return Demand(targets, body.floor, body.higher_is_better, accuracy)


def _accuracy(score: Score, model: RunnableModel) -> m.Accuracy:
    return m.Accuracy(
        value=score.value,
        low=score.low,
        high=score.high,
        metrics=score.metrics,
        samples=score.samples,
        complete=score.complete,
        verdict=score.verdict,
        evaluate_s=score.evaluate_s,
        inference_s=score.inference_s,
        warnings=model.warnings,
        score=score.graded,
    )


__all__ = ["Runner"]
