"""One run from start to end: joins strategy, scheduler, transport and journal.

The tuner asks the workers what the model is, builds the tuning space, has the baseline scored, lets the strategy ask
for stages, chooses the winner and has it exported. What it decides, it decides in candidate order; what it knows, it
has read from the journal or written there first.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from distune.config.job import DataloaderSpec, StrategySpec, TuningJob
from distune.distributed.transport import Event, Transport, WorkerInfo, WorkerLost
from distune.engine import diagnosis, events
from distune.engine.baseline import score_baseline
from distune.engine.book import TrialBook
from distune.engine.calibration import Calibrator
from distune.engine.decisions import DecisionLog
from distune.engine.dispatcher import Dispatcher, Interrupted
from distune.engine.inspecting import inspect_everywhere
from distune.engine.judging import Judging
from distune.engine.objective import Baseline, Choice, choose, score
from distune.engine.outcome import OutcomeName, RunOutcome, Timing
from distune.engine.quarantine import Quarantined
from distune.engine.refinement import Refinement
from distune.engine.speculation import Speculation, foresees
from distune.errors import DistuneError, TransportError, UsageError, WorkspaceError
from distune.evaluation.order import SampleOrder
from distune.journal.journal import Journal
from distune.journal.signature import differences, signature
from distune.journal.workspace import Workspace
from distune.space.tuning_space import TuningSpace, build_space
from distune.strategies.base import StrategyContext, TuningFinished
from distune.strategies.leading import settle_recipes
from distune.strategies.registry import strategies, strategy_class
from distune.strategies.stage import Trial
from distune.trial.messages import Accuracy, Export, Exported, Failure, Inspection


class Tuner:
    """See the module's description. Use one per run.

    Args:
        job: What to tune.
        transport: Connected to the workers; the caller closes it.
        workspace: Open and locked; the caller closes it.
        listener: Follows the run.
        speculates: Ranks that would idle begin with what the next stages will probably ask. Decides nothing.
    """

    def __init__(
        self,
        job: TuningJob,
        transport: Transport,
        workspace: Workspace,
        listener: events.Listener | None = None,
        speculates: bool = True,
    ) -> None:
        self._job = job
        self._speculates = speculates and job.isolation == "process"
        self._workspace = workspace
        self._followed = listener is not None
        self._listener = listener or events.Listener()
        self._dispatcher = Dispatcher(
            transport,
            run=uuid.uuid4().hex,
            on_event=self._on_event,
            can_hold=job.isolation == "process",
            on_quarantine=self._on_quarantine,
            on_sent=self._tell_busy,
        )
        self._dispatcher.deadline_s = job.limits.deadline_s
        self._dispatcher.memory_bytes = job.limits.memory_bytes
        self._started_workers: tuple[WorkerInfo, ...] = tuple(transport.workers)
        self._book = TrialBook(job.exit_policy.max_trials, job.criterion.higher_is_better)
        self._warnings: list[str] = []
        self._skipped: list[str] = []
        self._inspection: Inspection | None = None
        self._space: TuningSpace | None = None
        self._baseline: Accuracy | None = None
        self._journal: Journal | None = None
        self._judging: Judging | None = None
        self._calibrator: Calibrator | None = None
        self._startup_s = 0.0
        self._given_back: tuple[str, ...] = ()

    def interrupt(self, reason: str) -> None:
        """Stop at the next opportunity with outcome ``interrupted``; may be called from a signal handler."""
        self._dispatcher.interruption = reason

    def run(self) -> RunOutcome:
        """Tune.

        Raises:
            UsageError: The model, the data, the user's code or the workspace is at fault and nothing was tuned.
        """
        chosen = self._strategy()
        strategy_class(chosen).check(chosen.kwargs, chosen.name)
        if self._job.parameters and not strategy_class(chosen).tunes_parameters:
            able = ", ".join(name for name, strategy in strategies().items() if strategy.tunes_parameters)
            raise UsageError(f"strategy {chosen.name} does not tune parameters of one's own; those that do: {able}")
        self._tell(events.RunStarted(self._job, self._started_workers))
        try:
            self._inspect()
            self._open_journal()
            outcome = self._tune()
        except Interrupted as interruption:
            outcome = self._outcome("interrupted", failure=str(interruption))
        except WorkspaceError as error:
            if self._judging is None:
                raise
            outcome = self._outcome("interrupted", failure=str(error))  # the disk is full, say: what was kept is kept
        except UsageError:
            raise
        except DistuneError as error:
            outcome = self._outcome("failed", failure=str(error))
        finally:
            unkept = self._close_journal()
        if unkept is not None and outcome.outcome != "interrupted":
            outcome = self._outcome("interrupted", failure=str(unkept))
        self._tell(events.RunEnded(outcome))
        return outcome

    def _close_journal(self) -> WorkspaceError | None:
        """Close it; gives the error where its last records could not be written (the next start makes them anew)."""
        if self._journal is not None:
            try:
                self._journal.close()
            except WorkspaceError as error:
                return error
        return None

    # ------------------------------------------------------------------------------------------------------ phases

    def _inspect(self) -> None:
        self._inspection = inspect_everywhere(self._dispatcher, self._warn)
        self._startup_s = self._dispatcher.now()

    def _open_journal(self) -> None:
        assert self._inspection is not None  # set by _inspect, which ran before
        header = signature(self._job, self._inspection.digest)
        self._journal = Journal.open(self._workspace.journal, header)
        for warning in self._journal.warnings:
            self._warn(warning)
        unlike = differences(self._journal.header, header)
        if unlike:
            raise WorkspaceError(
                f"{self._workspace.path} holds the journal of another job:\n  "
                + "\n  ".join(unlike)
                + "\nUse another --workspace, or --fresh to start over here (the old journal is kept aside)."
            )
        self._dispatcher.use(self._journal)
        self._space = build_space(
            self._inspection.capability,
            self._job.constraints,
            self._job.approach,
            self._job.recipes,
            self._job.calibration.sampling_sizes,
        )
        self._space = replace(self._space, parameters=self._job.parameters)
        if not any(record.data.get("kind") == "ops" for record in self._journal.records("note")):
            ops = [[op.name, op.op_type, op.group, op.has_weight] for op in self._space.ops]
            self._journal.append("note", {"kind": "ops", "ops": ops})
        if unknown := diagnosis.unknown_ops(self._job, self._space):
            raise UsageError(f"tuning.diagnosis.op_list: no op of the model is named {', '.join(unknown)}")
        for warning in self._space.warnings:
            self._warn(warning)
        self._calibrator = Calibrator(
            self._dispatcher,
            self._workspace,
            self._inspection.digest,
            self._listener,
            self._warn,
            self._space.variant,
        )
        self._judging = Judging(
            self._job,
            self._dispatcher,
            self._calibrator,
            self._book,
            DecisionLog(self._journal),
            self._listener,
            self._inspection.judged_is_deployed,
        )
        self._tell(events.SpaceBuilt(self._space, self._dispatcher.results))

    def _tune(self) -> RunOutcome:
        assert self._space is not None  # set by _open_journal, as is the next
        assert self._judging is not None
        if self._job.exit_policy.performance_only or not self._job.evaluation.can_judge:
            return self._quantize_once(self._space, self._judging)
        self._score_baseline()
        strategy_type = strategy_class(self._strategy())
        context = StrategyContext(
            record=self._book,
            criterion=self._job.criterion,
            kwargs=self._job.strategy.kwargs,
            seed=self._job.seed,
            stop_at_first=self._job.stops_at_first,
            judge=self._judging.judge,
            tell=self._skip,
            think=self._dispatcher.meanwhile,
            score=self._score,
            metrics=self._job.metrics,
            outside=self._outside,
            facts=_facts(self._job),
            job=self._job,
        )
        with suppress(TuningFinished):  # an overridden traverse() may go on asking after the end
            self._space = settle_recipes(self._space, self._judging.judge, self._skip)
            if self._speculates and foresees(self._strategy().name, strategy_type):
                self._judging.speculate(Speculation(strategy_type, self._space, context, self._book))
            strategy_type.create(self._space, context).traverse()
        return self._conclude(self._judging)

    def _quantize_once(self, space: TuningSpace, judging: Judging) -> RunOutcome:
        """No way to judge was given: the default config is quantized and exported as it is."""
        for recipe in space.leading:
            space = space.settled(recipe.name, recipe.choices[0])
        config = space.default()
        trial = self._book.add(judging.measuring.measured(Trial(0, "default", config, "not_judged", "default")))
        exported = self._exported(self._begin_export(trial))
        trial = replace(trial, size_bytes=sum(map(len, exported.files.values())))
        self._book.update(trial)
        return self._outcome("not_judged", best=trial, exported=exported)

    def _score_baseline(self) -> None:
        assert self._judging is not None  # set by _open_journal
        shards = self._fp32_shards()
        self._baseline, seconds = score_baseline(self._job, self._dispatcher, self._book, shards, self._calibrate_first)
        for warning in self._baseline.warnings:
            self._warn(warning)
        if self._baseline.order:
            self._judging.use(SampleOrder.decode(self._baseline.order))
        self._tell(
            events.BaselineKnown(
                self._baseline.value,
                self._book.target,
                self._job.criterion.higher_is_better,
                self._baseline.samples,
                seconds,
                shards,
            )
        )

    def _fp32_shards(self) -> int:
        """Workers that score fp32 together: all, where the metrics allow it, but none without a batch."""
        assert self._inspection is not None  # set by _inspect
        if not self._inspection.fp32_in_shards:
            return 1
        samples, batch_size = (self._inspection.data.get(name) for name in ("samples", "batch_size"))
        workers, most = len(self._dispatcher.workers), self._job.evaluation.iteration
        batches = -(-samples // batch_size) if samples and batch_size else workers
        return max(1, min(workers, batches, most if most >= 0 else batches))

    def _calibrate_first(self) -> None:
        """Calibrate for the config that is judged first."""
        assert self._space is not None  # set by _open_journal, as is the next
        assert self._calibrator is not None
        self._calibrator.ensure(self._space.default())

    def _conclude(self, judging: Judging) -> RunOutcome:
        """Choose among the trials, measure what was chosen, export it."""
        judging.free_the_workers()
        judging.settle_best()
        if self._job.stops_at_first and len(self._book.met) > 1:
            judging.measuring.measure_met()  # a stage that did not end the run met, and so did a later one
        choice = self._measured_choice(judging)
        if choice is not None and choice.trial.met and self._refine(judging, choice.trial):
            choice = self._measured_choice(judging)
        if choice is None:
            return self._outcome(self._ending(judging, met=False))
        trial = choice.trial
        judging.decisions.chosen(trial, choice.tied)
        if trial.latency is not None and trial.latency.ci_low > 1:
            self._warn(
                f"the best quantized model is slower than fp32 here ({trial.latency.ratio:.2f} x its latency): "
                f"keep fp32 unless size is what counts"
            )
        if judging.timed_out:
            self._warn_of_untimed()
        exporting = self._begin_export(trial)
        self._diagnose(judging, trial)  # meanwhile, where there are several ranks
        exported = self._exported(exporting)
        return self._outcome(self._ending(judging, met=trial.met), best=trial, exported=exported, tied=choice.tied)

    def _warn_of_untimed(self) -> None:
        """Say where the time was over before all trials that meet could be compared."""
        untimed = [trial for trial in self._book.met if trial.latency is None]
        if any(objective.name == "performance" for objective in self._job.objectives) and untimed:
            self._warn(
                f"{len(untimed)} of {len(self._book.met)} trials that meet the criterion were not timed before the "
                f"timeout, and one of them may be faster: raise tuning.exit_policy.timeout and run again"
            )

    def _measured_choice(self, judging: Judging) -> Choice | None:
        """The winner, with its latency: to measure it may cost its config the last child process that it gets."""
        while (choice := self._choose()) is not None:
            trial = choice.trial if choice.trial.latency is not None else judging.measuring.measure(choice.trial)
            if trial.config.hash not in self._dispatcher.quarantine:
                return replace(choice, trial=trial)
        return None

    def _refine(self, judging: Judging, accepted: Trial) -> bool:
        """The minimality pass; says whether there may be a better choice now."""
        assert self._space is not None  # set by _open_journal
        if not self._job.refine_budget or not judging.grant(self._job.refine_budget):
            return False
        refinement = Refinement(self._space, self._book, judging.judge_stage, self._not_slower, judging.fallback_order)
        refinement.run(accepted)
        choice = self._measured_choice(judging)
        after = accepted if choice is None else choice.trial
        self._given_back = refinement.given_back(accepted.config, after.config)
        judging.decisions.refined(accepted, after, self._given_back)
        return True

    def _not_slower(self, trial: Trial, base: Trial) -> bool:
        """Whether ``trial`` is not worse than ``base`` by the objectives, as far as the intervals tell."""
        baseline = self._objective_baseline()
        ours = score(trial, self._job.objectives, baseline)
        theirs = score(base, self._job.objectives, baseline)
        return theirs is None or (ours is not None and ours.low <= theirs.high)

    def _diagnose(self, judging: Judging, best: Trial) -> None:
        """Look at tensors: those asked for, or those of the ops that hurt. The run stands without it."""
        assert self._space is not None  # set by _open_journal
        wanted = diagnosis.requests(self._job, self._space, self._book.trials, best, judging.op_impact)
        if wanted is None:
            return
        trial, request = wanted
        assert self._calibrator is not None  # set by _open_journal
        self._calibrator.prepare(request, trial.config)
        found = diagnosis.look(self._dispatcher, trial, request)
        if isinstance(found, diagnosis.Diagnosis):
            self._tell(events.Diagnosed(found.trial, found.ops))
        elif self._job.diagnosis is not None:
            self._warn(f"the tensors could not be compared: {found}")

    def _choose(self) -> Choice | None:
        baseline = self._objective_baseline()
        quarantine = self._dispatcher.quarantine
        met = [trial for trial in self._book.met if trial.config.hash not in quarantine]
        if met:
            return choose(met, self._job.objectives, baseline)
        best = self._book.best_of(lambda trial: trial.config.hash not in quarantine)
        return None if best is None else Choice(best, (best.id,))

    def _ending(self, judging: Judging, met: bool) -> OutcomeName:
        if met:
            return "met"
        return "budget_spent" if judging.out_of_budget else "not_met"

    def _begin_export(self, trial: Trial) -> int:
        assert self._calibrator is not None  # set by _open_journal
        body = Export(trial.config)
        self._calibrator.prepare(body, trial.config)
        return self._dispatcher.submit(body)

    def _exported(self, task: int) -> Exported:
        outcome = self._dispatcher.wait([task])[0]
        if isinstance(outcome.body, Exported):
            return outcome.body
        if isinstance(outcome.body, Failure):
            raise DistuneError(f"the chosen model could not be exported: {outcome.body.message}\n{outcome.body.detail}")
        raise TransportError(f"worker {outcome.rank} answered Export with {type(outcome.body).__name__}")

    # ----------------------------------------------------------------------------------------------------- helpers

    def _strategy(self) -> StrategySpec:
        by_level: Mapping[object, str] = {0: "conservative", "auto": "auto"}
        name = by_level.get(self._job.quant_level)
        return self._job.strategy if name is None else replace(self._job.strategy, name=name)

    def _outside(self, key: str, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, or gave when the run first came here: see ``StrategyContext.outside``."""
        assert self._journal is not None  # set by _open_journal
        for record in self._journal.records("note"):
            if record.data.get("kind") == "outside" and record.data.get("key") == key:
                return record.data["value"]
        value = self._dispatcher.meanwhile(work)
        self._journal.append("note", {"kind": "outside", "key": key, "value": value})
        self._journal.commit()
        return self._journal.records("note")[-1].data["value"]

    def _score(self, trial: Trial) -> float | None:
        found = score(trial, self._job.objectives, self._objective_baseline())
        return None if found is None else found.value

    def _objective_baseline(self) -> Baseline:
        accuracy = self._baseline.value if self._baseline is not None else float("nan")
        size = self._inspection.size_bytes if self._inspection is not None else 1
        metrics = self._baseline.metrics if self._baseline is not None else {}
        return Baseline(accuracy, size, self._job.criterion.higher_is_better, metrics)

    def _outcome(
        self,
        name: OutcomeName,
        best: Trial | None = None,
        exported: Exported | None = None,
        tied: tuple[int, ...] = (),
        failure: str = "",
    ) -> RunOutcome:
        judging = self._judging
        return RunOutcome(
            outcome=name,
            job=self._job,
            ranks=len(self._started_workers),
            workers=self._started_workers,
            lost_ranks=dict(self._dispatcher.lost),
            inspection=self._inspection,
            space=self._space,
            baseline=self._baseline,
            target=None if self._baseline is None else self._book.target,
            best=best,
            exported=exported,
            trials=self._book.trials,
            stages=() if judging is None else tuple(judging.stages),
            fallback_order=() if judging is None else judging.fallback_order,
            op_impact={} if judging is None else judging.op_impact,
            tied=tied,
            given_back=self._given_back,
            warnings=tuple(self._warnings),
            skipped=tuple(self._skipped),
            timing=self._timing(),
            failure=failure,
            quarantined=self._dispatcher.quarantine.entries,
        )

    def _timing(self) -> Timing:
        total, busy = self._dispatcher.now(), self._dispatcher.busy
        judging = self._judging
        return Timing(
            total_s=total,
            startup_s=self._startup_s,
            baseline_s=busy.seconds.get("Survey", 0.0) + busy.seconds.get("Baseline", 0.0),
            calibration_s=busy.seconds.get("Calibrate", 0.0),
            quantize_s=0.0 if judging is None else judging.answers.quantize_s,
            accuracy_s=0.0 if judging is None else judging.answers.accuracy_s,
            inference_s=0.0 if judging is None else judging.answers.inference_s,
            compile_s=0.0 if judging is None else judging.answers.compile_s + judging.measuring.compile_s,
            latency_s=busy.seconds.get("MeasureLatency", 0.0),
            idle_s=max(0.0, total * len(self._started_workers) - busy.total),
        )

    def _on_event(self, event: Event) -> None:
        if isinstance(event, WorkerLost):
            host = next((worker.host for worker in self._started_workers if worker.rank == event.rank), "")
            self._warn(f"worker lost: {event.reason}; its work is handed out again", event.rank, host)
        else:
            self._tell_busy()

    def _tell_busy(self) -> None:
        if self._followed:
            doing = {rank: task.body for rank, task in self._dispatcher.active.items()}
            ranks = tuple(worker.rank for worker in self._dispatcher.workers)
            self._tell(events.WorkersBusy(doing, ranks, self._dispatcher.results))

    def _on_quarantine(self, entry: Quarantined) -> None:
        text = entry.sentence + (f"\n{entry.failure.detail}" if entry.failure.detail else "")
        self._warn(text, entry.rank, entry.host)

    def _warn(self, message: str, rank: int | None = None, host: str = "") -> None:
        self._warnings.append(message if rank is None else f"rank {rank} on {host}: {message}")
        self._tell(events.Warned(message, rank, host))

    def _skip(self, message: str) -> None:
        self._skipped.append(message)
        self._tell(events.Warned(message))

    def _tell(self, event: events.RunEvent) -> None:
        self._listener.on(event)


def _facts(job: TuningJob) -> dict[str, str]:
    """What the job is about, in names."""
    loader = job.evaluation.dataloader
    dataset = loader.dataset.name if isinstance(loader, DataloaderSpec) else ""
    facts = {
        "model": job.model.name or Path(job.model.path).name,
        "framework": job.model.framework,
        "dataset": dataset,
    }
    return {key: value for key, value in facts.items() if value}
