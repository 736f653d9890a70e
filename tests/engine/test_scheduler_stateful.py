"""Whatever order, doubling, loss or timeout: each trial is judged exactly once or quarantined, and the winner stays."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distune.distributed.transport import ResultArrived, WorkerInfo, WorkerLost
from distune.engine.book import TrialBook
from distune.engine.quarantine import STRIKING, Quarantine
from distune.engine.scheduler import Done, Instruction, Resume, Scheduler, Send, Suspend, Task
from distune.engine.stage_run import StageRun
from distune.space.op_config import TuningConfig
from distune.strategies.stage import Stage, Trial
from distune.trial.messages import Accuracy, Failure, Judge, MeasureLatency, ProbeAnswer, Request, Result, ResultBody
from tests import synthetic

RUN = "this run"
SPACE = synthetic.space(convs=6)
CONFIGS = tuple(SPACE.fallback(SPACE.default(), [f"conv{index}"]) for index in range(6))


def scored(value: float) -> Accuracy:
    return Accuracy(value, value, value, {"accuracy": value}, 10)


def stage_run(use: Any, exit_: Any) -> tuple[StageRun, TrialBook]:
    """A stage over all configs, whose book has room for all but one."""
    book = TrialBook(len(CONFIGS) - 1, baseline=1.0, target=0.9)
    return StageRun(Stage("stage", list(CONFIGS), exit=exit_, use=use), book, stop_at_first=True), book


def trial(config: TuningConfig, body: ResultBody) -> Trial:
    if isinstance(body, Accuracy):
        return Trial(0, "stage", config, "met" if body.value >= 0.9 else "not_met", accuracy=body.value)
    return Trial(0, "stage", config, "failed")


class Fates(RuleBasedStateMachine):
    """A scheduler and a stage among workers that answer, fail, answer twice, and go."""

    @initialize(
        hosts=st.text("ab", min_size=1, max_size=5),
        can_hold=st.booleans(),
        values=st.lists(st.sampled_from((0.5, 0.8, 0.9, 0.95)), min_size=len(CONFIGS), max_size=len(CONFIGS)),
        kind=st.sampled_from((("base", "first"), ("rank", "none"), ("best", "none"), ("prefix", "first"))),
    )
    def begin(self, hosts: str, can_hold: bool, values: list[float], kind: tuple[str, str]) -> None:
        self.hosts = hosts
        self.scheduler = Scheduler([WorkerInfo(rank, host) for rank, host in enumerate(hosts)], RUN, can_hold)
        self.values = dict(zip((config.hash for config in CONFIGS), values, strict=True))
        self.kind = kind
        self.stage, self.book = stage_run(*kind)
        self.quarantine = Quarantine()
        self.running: dict[int, Request] = {}
        self.held: set[int] = set()
        self.seen: list[ResultArrived] = []
        self.tasks: dict[int, Task] = {}
        self.outcomes: dict[int, ResultBody] = {}
        self.strikes: dict[int, int] = {}
        self.abandoned: set[int] = set()
        self.unwanted: set[int] = set()
        self.next_id = 1
        self.ask()

    # ------------------------------------------------------------------------------------------------- what happens

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.running)
    def answers(self, pick: int) -> None:
        rank = self.some(pick)
        body = self.running[rank].body
        value: ResultBody = scored(self.values[body.config.hash]) if isinstance(body, Judge) else ProbeAnswer({})
        self.arrives(rank, value)

    @rule(pick=st.integers(0, 99), kind=st.sampled_from(("crash", "deadline", "memory", "error", "user_error")))
    @precondition(lambda self: self.running)
    def fails(self, pick: int, kind: Any) -> None:
        self.arrives(self.some(pick), Failure(kind, "planted"))

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.seen)
    def answers_again(self, pick: int) -> None:
        before = dict(self.running)
        self.take(self.scheduler.on_events(self.seen[pick % len(self.seen)]))
        assert self.running == before, "a doubled answer changes nothing"

    @rule(pick=st.integers(0, 99), wrong=st.sampled_from(("run", "attempt", "rank", "id")))
    @precondition(lambda self: self.running)
    def answers_for_somebody_else(self, pick: int, wrong: str) -> None:
        rank = self.some(pick)
        request = self.running[rank]
        event = ResultArrived(
            Result(
                request.id + 1000 * (wrong == "id"),
                request.attempt - (wrong == "attempt"),
                rank + 100 * (wrong == "rank"),
                scored(99.0),
                "" if wrong == "run" else RUN,
            )
        )
        assert self.scheduler.on_events(event) == []

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: set(self.running) & self.held)
    def has_answered_before_it_was_held(self, pick: int) -> None:
        ranks = sorted(set(self.running) & self.held)
        self.arrives(ranks[pick % len(ranks)], scored(0.5))

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: len(self.scheduler.workers) > 1)
    def is_lost(self, pick: int) -> None:
        ranks = [worker.rank for worker in self.scheduler.workers]
        rank = ranks[pick % len(ranks)]
        self.running.pop(rank, None)
        self.held.discard(rank)
        self.take(self.scheduler.on_events(WorkerLost(rank, "killed")))
        assert self.scheduler.on_events(WorkerLost(rank, "killed")) == []

    @rule(picks=st.sets(st.integers(0, 4), min_size=2, max_size=4))
    @precondition(lambda self: len(self.scheduler.workers) > 2)
    def are_lost_together(self, picks: set[int]) -> None:
        ranks = [worker.rank for worker in self.scheduler.workers]
        gone = sorted({ranks[pick % len(ranks)] for pick in picks})[: len(ranks) - 1]
        for rank in gone:
            self.running.pop(rank, None)
            self.held.discard(rank)
        self.take(self.scheduler.on_events(*(WorkerLost(rank, "killed") for rank in gone)))

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.timed())
    def is_abandoned(self, pick: int) -> None:
        number = self.timed()[pick % len(self.timed())]
        self.abandoned.add(number)
        assert self.scheduler.drop([number]) == []

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.abandoned)
    def is_wanted_again(self, pick: int) -> None:
        number = sorted(self.abandoned)[pick % len(self.abandoned)]
        self.abandoned.discard(number)
        self.scheduler.want(number)

    @rule(pick=st.integers(0, len(CONFIGS) - 1))
    def is_to_be_timed(self, pick: int) -> None:
        self.submit(MeasureLatency(CONFIGS[pick]), exclusive=True)

    # ---------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def nobody_works_beside_a_measurement(self) -> None:
        for rank, request in getattr(self, "running", {}).items():
            if self.tasks[request.id].exclusive:
                beside = [r for r in self.running if r != rank and self.hosts[r] == self.hosts[rank]]
                assert set(beside) <= self.held

    @invariant()
    def work_is_with_the_living_or_waits(self) -> None:
        if hasattr(self, "scheduler"):
            assert set(self.running) == set(self.scheduler.busy)
            open_ = set(self.tasks) - set(self.outcomes)
            assert {request.id for request in self.running.values()} <= open_
            idle = {worker.rank for worker in self.scheduler.workers} - set(self.running)
            quiet = {self.hosts[rank] for rank, request in self.running.items() if self.tasks[request.id].exclusive}
            waiting = open_ - {request.id for request in self.running.values()}
            if waiting and not any(self.tasks[number].exclusive for number in open_):
                assert not [rank for rank in idle if self.hosts[rank] not in quiet], "nobody idles while work waits"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        while self.running:
            self.answers(0)
        assert set(self.outcomes) == set(self.tasks), "every piece of work has its outcome"
        assert self.stage.ended
        decided = [t for t in self.book.trials if t.stage == "stage"]
        assert len({t.config.hash for t in decided}) == len(decided), "judged once"
        for number, body in self.outcomes.items():
            if number in self.unwanted:
                continue
            quarantined = isinstance(body, Failure) and body.kind in STRIKING
            assert quarantined == (self.strikes.get(number, 0) == 2)
            if quarantined:
                assert self.tasks[number].body.config.hash in self.quarantine  # type: ignore[union-attr]
        assert self.decisions() == self.in_order(), "the order of arrival changes no decision"

    # ----------------------------------------------------------------------------------------------------- helpers

    def some(self, pick: int) -> int:
        """A worker that works and is not held."""
        ranks = sorted(set(self.running) - self.held)
        return ranks[pick % len(ranks)]

    def timed(self) -> list[int]:
        """The measurements that are being made."""
        numbers = (request.id for request in self.running.values())
        return sorted(number for number in numbers if self.tasks[number].exclusive)

    def arrives(self, rank: int, body: ResultBody) -> None:
        request = self.running.pop(rank)
        if isinstance(body, Failure) and body.kind in STRIKING:
            self.strikes[request.id] = self.strikes.get(request.id, 0) + 1
        event = ResultArrived(Result(request.id, request.attempt, rank, body, RUN))
        self.seen.append(event)
        self.take(self.scheduler.on_events(event))

    def ask(self) -> None:
        for candidate in self.stage.want(2 * len(self.scheduler.workers)):
            self.submit(Judge(candidate.config))

    def submit(self, body: Judge | MeasureLatency, exclusive: bool = False) -> None:
        task = Task(self.next_id, body, exclusive=exclusive)
        self.next_id += 1
        self.tasks[task.id] = task
        self.take(self.scheduler.submit(task))

    def take(self, instructions: list[Instruction]) -> None:
        done: list[Done] = []
        for instruction in instructions:
            if isinstance(instruction, Send):
                assert instruction.rank not in self.running, "a worker does one thing at a time"
                assert instruction.request.id not in {r.id for r in self.running.values()}, "work is done once"
                assert instruction.rank not in {*self.scheduler.lost, *self.held}
                assert instruction.request.id not in self.abandoned, "nobody wants it"
                self.running[instruction.rank] = instruction.request
            elif isinstance(instruction, Suspend):
                self.held.add(instruction.rank)
            elif isinstance(instruction, Resume):
                self.held.discard(instruction.rank)
            elif isinstance(instruction, Done):
                assert instruction.task.id not in self.outcomes, "one outcome"
                self.outcomes[instruction.task.id] = instruction.result.body
                assert instruction.wanted == (instruction.task.id not in self.abandoned)
                if instruction.wanted:
                    done.append(instruction)
                else:
                    self.abandoned.discard(instruction.task.id)
                    self.unwanted.add(instruction.task.id)
        for item in done:
            if isinstance(item.result.body, Failure):
                self.quarantine.note(item.task.body, item.result.body, item.result.rank, "")
            if isinstance(item.task.body, Judge):
                self.stage.take(trial(item.task.body.config, item.result.body))
        if done:
            self.stage.decide()
            self.ask()

    def decisions(self) -> list[tuple[int, str, str, float | None]]:
        return [(t.id, t.config.hash, t.verdict, t.accuracy) for t in self.book.trials]

    def in_order(self) -> list[tuple[int, str, str, float | None]]:
        """The decisions of one worker to which the same happens, in candidate order."""
        bodies = {
            task.body.config.hash: self.outcomes[number]
            for number, task in self.tasks.items()
            if isinstance(task.body, Judge)
        }
        stage, book = stage_run(*self.kind)
        while not stage.ended:
            for candidate in stage.want(1):
                stage.take(trial(candidate.config, bodies[candidate.config.hash]))
            stage.decide()
        return [(t.id, t.config.hash, t.verdict, t.accuracy) for t in book.trials]


Fates.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_fates = Fates.TestCase
