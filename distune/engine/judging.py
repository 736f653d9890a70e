"""Answers what a strategy asks: runs stages and probes on the workers and takes their decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from distune.config.job import TuningJob
from distune.engine import events
from distune.engine.ahead import RunAhead
from distune.engine.answers import Answers
from distune.engine.asking import Asking
from distune.engine.book import TrialBook
from distune.engine.calibration import Calibrator
from distune.engine.confirmation import Confirmations
from distune.engine.decisions import DecisionLog
from distune.engine.dispatcher import Dispatcher
from distune.engine.measuring import Measuring
from distune.engine.outcome import StageRecord
from distune.engine.probing import merged, shards
from distune.engine.speculation import Speculation
from distune.engine.stage_run import LAST_ROUNDS, Decision, StageRun, completed
from distune.evaluation.order import SampleOrder
from distune.space.op_config import TuningConfig
from distune.strategies.base import Answer, TuningFinished, Wanted
from distune.strategies.fallback import ranking_values
from distune.strategies.stage import Candidate, ProbeResult, ProbeStage, Stage, StageResult, Trial
from distune.trial.messages import (
    Failure,
    Judge,
    ProbeAnswer,
    StageClosed,
    StageOpened,
    UseOrder,
)


class Judging:
    """See the module's description.

    Attributes:
        answers: Makes trials of answers.
        measuring: Latency and footprint of trials.
        decisions: Where what is decided is entered.
        stages: The stages so far.
        fallback_order: The order of groups that the last fallback stage followed.
        op_impact: Accuracy gained by returning each group alone to floating point.
        out_of_budget: Trials or time ran out.
    """

    def __init__(
        self,
        job: TuningJob,
        dispatcher: Dispatcher,
        calibrator: Calibrator,
        book: TrialBook,
        decisions: DecisionLog,
        listener: events.Listener,
        judged_is_deployed: bool = True,
    ) -> None:
        self._job = job
        self._dispatcher = dispatcher
        self._calibrator = calibrator
        self._book = book
        self.decisions = decisions
        self._listener = listener
        self._confirmations = Confirmations(not judged_is_deployed, listener)
        self._stop_at_first = job.stops_at_first
        self.measuring = Measuring(job, dispatcher, calibrator, book, listener)
        self._finished = False
        self._timed_out = False
        self._asking = Asking(job, book)
        self.answers = Answers(job, book, listener)
        self.stages: list[StageRecord] = []
        self.fallback_order: tuple[str, ...] = ()
        self.op_impact: dict[str, float] = {}
        self.out_of_budget = False
        self._run_ahead = RunAhead(dispatcher, calibrator, self._likely)

    def use(self, order: SampleOrder) -> None:
        """Have every worker score the samples in this order: trials may end early from now on."""
        self._asking.use(order)
        self._dispatcher.broadcast(UseOrder(order.encode()))

    def judge(self, wanted: Wanted) -> Answer:
        """Have ``wanted`` done and give the answer: a ``Trial`` for a config, else a stage's or probe's result.

        Raises:
            TuningFinished: The run was over before.
            Interrupted, TransportError: See ``Dispatcher.pump``.
        """
        answer = self._judged(wanted)
        self._run_ahead.answered(wanted, answer)
        return answer

    def speculate(self, speculation: Speculation) -> None:
        """Have ranks that would idle begin with what the next stages will probably ask, from now on."""
        self._run_ahead.use(speculation)

    def _judged(self, wanted: Wanted) -> Answer:
        if self._finished:
            raise TuningFinished("the run is over")
        if isinstance(wanted, ProbeStage):
            return self._probe(wanted)
        if isinstance(wanted, Stage):
            return self._stage(wanted)
        result = self._stage(Stage("trial", [wanted]))
        if not result.trials:
            raise TuningFinished("the budget is spent")
        return result.trials[0]

    # ------------------------------------------------------------------------------------------------------- stages

    def judge_stage(self, stage: Stage) -> StageResult:
        """As ``judge``, for a stage."""
        if self._finished:
            raise TuningFinished("the run is over")
        return self._stage(stage)

    def _stage(self, stage: Stage) -> StageResult:
        start = self._dispatcher.now()
        total = _total(stage)
        run = StageRun(stage, self._book, self._stop_at_first, lambda trial: self._asking.is_enough(stage, trial))
        ranked = self._asking.to_survey(stage)
        if ranked is not None:
            self._survey(stage, ranked)
        base = self._book.best if stage.base is None else self._book.find(stage.base.hash)
        if stage.order:
            self.fallback_order = stage.order
            self.decisions.add(kind="order", stage=stage.name, order=stage.order)
        self._listener.on(events.StageStarted(stage.name, total, self._book.remaining))
        if stage.base is not None:
            self._dispatcher.broadcast(StageOpened(stage.name, stage.base))
        self._decide(run, total)
        timed = self._is_to_be_timed()
        if timed:
            self._measure_all(stage, run)
        result = self._close(stage, run, base, timed)
        seconds = self._dispatcher.now() - start
        self.stages.append(StageRecord.of(stage, total, run.position, seconds, result.met is not None))
        self._listener.on(events.StageEnded(stage.name, result.met, run.position, seconds))
        return result

    def _survey(self, stage: Stage, base: TuningConfig) -> None:
        """Have the samples found that rank what differs from ``base`` in one op."""
        body = self._asking.survey_request(base)
        self._calibrator.prepare(body, base)
        (outcome,) = self._dispatcher.wait([self._run_ahead.submit(body)])
        self.answers.trial(stage, Candidate(base), outcome)
        self._asking.surveyed(base, outcome.body)

    def _decide(self, run: StageRun, total: int | None) -> None:
        """Have the stage's candidates judged until it ends."""
        tasks: dict[int, Candidate] = {}
        waiting: list[Candidate] = []
        while True:
            waiting += run.want(self._ahead(run.stage), self._last(run.stage, total))
            # What the journal answers comes first: it may end the stage, and then nothing new needs to begin.
            known = [c for c in waiting if self._dispatcher.knows(self._asking.request(c.config, run.stage))]
            submitted, waiting = (known, [c for c in waiting if c not in known]) if known else (waiting, [])
            for candidate in submitted:
                tasks[self._submit(candidate.config, run.stage)] = candidate
            self._collect(run, tasks)
            decided = self._take_decisions(run, total)
            if run.ended:
                break
            if not decided and not known:
                self._run_ahead.look(run, len(tasks))
                self._dispatcher.pump()
        self._dispatcher.drop(tasks)

    def _collect(self, run: StageRun, tasks: dict[int, Candidate]) -> None:
        """Take in what was answered. What meets is judged once more where another model than the judged is deployed."""
        open_ids = list(tasks)
        for task_id in open_ids:  # grows: the journal may know the second answer already
            outcome = self._dispatcher.take(task_id)
            if outcome is None:
                continue
            candidate = tasks.pop(task_id)
            trial = self.answers.trial(run.stage, candidate, outcome)
            if self._confirmations.needs(task_id, trial):
                again = self._confirm(trial, run.stage)
                tasks[again] = candidate
                open_ids.append(again)
            else:
                run.take(self._confirmations.settle(task_id, trial))

    def _confirm(self, trial: Trial, stage: Stage) -> int:
        """Have ``trial`` judged as it is deployed; gives the task."""
        body = self._confirmations.request(self._asking.request(trial.config, stage))
        self._calibrator.prepare(body, trial.config)  # the journal may hold the first answer alone
        task = self._dispatcher.submit(body)
        self._confirmations.begin(task, trial)
        return task

    def _take_decisions(self, run: StageRun, total: int | None) -> bool:
        """Take the decisions that can be taken now; says whether there were any."""
        taken = False
        while not run.ended:
            if self._out_of_time():
                run.stop()
            for decision in run.decide(1):
                self._enter(run.stage, decision, total)
                taken = True
                break
            else:
                break
        if taken:
            self.decisions.commit()
        return taken

    def _likely(self, stage: Stage) -> Iterator[Judge]:
        """What a stage that may come would ask, as far as the trials so far do not answer it."""
        ranked = self._asking.to_survey(stage)
        if ranked is not None:
            yield self._asking.survey_request(ranked)
            return
        for candidate in stage.candidates:
            config = candidate.config if isinstance(candidate, Candidate) else candidate
            known = self._book.find(config.hash)
            if known is None or not self._asking.is_enough(stage, known):
                yield self._asking.request(config, stage)

    def _ahead(self, stage: Stage) -> int:
        """Candidates that may be open at once: enough that no worker waits for the master."""
        workers = len(self._dispatcher.workers)
        return 2 * workers if stage.exit == "none" or not self._stop_at_first else workers

    def _last(self, stage: Stage, total: int | None) -> int:
        """How many of the last candidates are wanted at once: see ``StageRun.want``."""
        workers = len(self._dispatcher.workers)
        return LAST_ROUNDS * workers if stage.base is not None and total is not None and workers > 1 else 0

    def _submit(self, config: TuningConfig, stage: Stage) -> int:
        body = self._asking.request(config, stage)
        # Workers make the base, too, for what its trials have in common with it.
        self._calibrator.prepare(body, *([] if stage.base is None else [stage.base]), config)
        return self._run_ahead.submit(body)

    def _enter(self, stage: Stage, decision: Decision, total: int | None) -> None:
        trial = decision.trial
        self.decisions.add(
            kind="trial",
            stage=stage.name,
            index=decision.index,
            label=trial.label,
            trial=trial.id,
            config_hash=trial.config.hash,
            verdict=trial.verdict,
            accuracy=trial.accuracy,
            again=decision.again,
            config=None if decision.again else trial.config.to_compact(),
        )
        self._listener.on(events.TrialDecided(trial, decision.index, total, decision.again, self._book.best))

    def _close(self, stage: Stage, run: StageRun, base: Trial | None, timed: bool) -> StageResult:
        """Take the stage's own decision and tell it to every worker."""
        timed_out = self._out_of_time()
        if self._book.remaining == 0 or run.out_of_budget or timed_out:
            self.out_of_budget = True  # also where a stage was cut short to leave trials for a later one
        result = run.result(finished=False)
        succeeded = self._stop_at_first and stage.ends_run and result.met is not None
        self._finished = self._book.remaining == 0 or timed_out or succeeded
        result = replace(result, finished=self._finished)
        order: tuple[str, ...] = ()
        if stage.use == "rank":
            order = self._rank(result, base)
        following = self._book.best
        base_hash = following.config.hash if following is not None else ""
        self.decisions.add(
            kind="stage",
            stage=stage.name,
            judged=run.position,
            base=base_hash,
            order=order,
            stopped=self._job.exit_policy.timeout if timed_out else None,
            timed=timed,
        )
        self.decisions.commit()
        self._dispatcher.broadcast(StageClosed(stage.name, base_hash, order))
        return result

    def _rank(self, result: StageResult, base: Trial | None) -> tuple[str, ...]:
        """Labels by impact, and the impact of each."""
        measured = ranking_values((*result.trials, *((base,) if base is not None else ())))
        before = None if base is None else measured.get(base.id)
        if before is None:
            return ()
        sign = 1.0 if self._job.criterion.higher_is_better else -1.0
        gains = {trial.label: sign * (measured[trial.id] - before) for trial in result.trials if trial.id in measured}
        self.op_impact.update(gains)
        return tuple(sorted(gains, key=lambda label: -gains[label]))

    # --------------------------------------------------------------------------------------------- what is measured

    def _is_to_be_timed(self) -> bool:
        """Whether there is time to measure a stage's trials; taken again, it is as an earlier start found it."""
        upcoming = self.decisions.upcoming
        before = upcoming is not None and bool(upcoming.get("timed", False))
        return before or not self._out_of_time()

    def _measure_all(self, stage: Stage, run: StageRun) -> None:
        """Measure what the stage or the objectives need to know of its trials.

        Where the first success ends the run, the winner alone is measured, at the end.
        """
        if stage.latency == "none" or (self._stop_at_first and stage.ends_run and stage.use != "best"):
            return
        trials = {trial.id: trial for trial in run.result(finished=False).trials if trial.verdict != "failed"}
        wanted = [trial for trial in trials.values() if trial.met or stage.latency == "all"]
        self.measuring.measure_all(wanted)

    @property
    def timed_out(self) -> bool:
        """Whether the time for looking further was over."""
        return self._timed_out

    def settle_best(self) -> None:
        """Find out which trial came nearest to the criterion, where some ended before that was known.

        The one that held out longest is scored in full, then every one that may still be better than the best.
        """
        if self._book.met or self._timed_out:
            return
        pending = self._may_be_best()
        if pending:
            self._score_on([max(pending, key=lambda trial: (trial.samples, -trial.id))])
            self._score_on(self._may_be_best())

    def _may_be_best(self) -> list[Trial]:
        best = self._book.best
        floor = None if best is None else best.accuracy
        unknown = [trial for trial in self._book.trials if trial.accuracy is None and not trial.complete]
        pending = [trial for trial in unknown if not trial.config.is_fp32]
        return [trial for trial in pending if floor is None or self._asking.may_reach(trial, floor)]

    def _score_on(self, trials: list[Trial]) -> None:
        """Score trials that ended early again, until they are known to be worse than the best, or exactly."""
        best = self._book.best
        floor = None if best is None or len(trials) == 1 else best.accuracy
        stage = Stage("settle", (), accuracy="exact" if floor is None else "verdict", floor=floor)
        tasks = [self._submit(trial.config, stage) for trial in trials]
        for trial, task, outcome in zip(trials, tasks, self._dispatcher.wait(tasks), strict=True):
            candidate = Candidate(trial.config, trial.label)
            again = self.answers.trial(stage, candidate, outcome)
            if self._confirmations.needs(task, again):
                second = self._confirm(again, stage)
                (confirmed,) = self._dispatcher.wait([second])
                again = self._confirmations.settle(second, self.answers.trial(stage, candidate, confirmed))
            self._book.update(completed(trial, again))

    def free_the_workers(self) -> None:
        """The trials are over: what still runs for a stage that has ended is given up."""
        self._run_ahead.end()
        self._dispatcher.calm()

    def grant(self, trials: int) -> bool:
        """Open the run, which the strategy has ended, for trials of a budget of their own; not where time is over."""
        if self._out_of_time():
            return False
        self._finished = False
        self._book.max_trials = len(self._book.trials) + trials
        return True

    # -------------------------------------------------------------------------------------------------------- probes

    def _probe(self, stage: ProbeStage) -> ProbeResult:
        self._listener.on(events.StageStarted(stage.name, None, self._book.remaining))
        start = self._dispatcher.now()
        bodies = shards(stage)
        for body in bodies:
            self._calibrator.prepare(body, *stage.configs)
        tasks = [self._run_ahead.submit(body) for body in bodies]
        answers: list[ProbeAnswer] = []
        for outcome in self._dispatcher.wait_until(self._out_of_time, tasks):
            if isinstance(outcome.body, ProbeAnswer):
                answers.append(outcome.body)
            else:
                reason = outcome.body.message if isinstance(outcome.body, Failure) else "unexpected answer"
                self._listener.on(events.Warned(f"{stage.name}: {reason}", outcome.rank, outcome.host))
        scores = merged(answers)
        order = tuple(sorted(scores, key=lambda name: -scores[name]))
        timed_out = self._out_of_time()
        self.decisions.add(
            kind="probe",
            stage=stage.name,
            config_hash=stage.config.hash,
            order=order,
            stopped=self._job.exit_policy.timeout if timed_out else None,
        )
        self.decisions.commit()
        self.out_of_budget = self.out_of_budget or timed_out
        self._finished = self._finished or timed_out
        self._listener.on(events.StageEnded(stage.name, None, 0, self._dispatcher.now() - start))
        return ProbeResult(scores, self._finished)

    def _out_of_time(self) -> bool:
        """Whether the time for looking further is over.

        While the decisions of an earlier start are taken again, the clock says nothing: time is over where it was
        then, unless there is more of it now.
        """
        timeout = self._job.exit_policy.timeout
        upcoming = self.decisions.upcoming
        if not self._timed_out and timeout > 0:
            if upcoming is None:
                self._timed_out = self._dispatcher.now() >= timeout
            else:
                stopped = upcoming.get("stopped")
                self._timed_out = stopped is not None and timeout <= stopped
        return self._timed_out


def _total(stage: Stage) -> int | None:
    if stage.total is not None:
        return stage.total
    candidates = stage.candidates
    return len(candidates) if isinstance(candidates, list | tuple) else None
