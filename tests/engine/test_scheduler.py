"""The scheduler hands every task out until it has one outcome, keeps hosts quiet for latency, and survives losses."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from distune.distributed.transport import ResultArrived, WorkerInfo, WorkerLost
from distune.engine.scheduler import Done, Hold, Instruction, Release, Resume, Scheduler, Send, Suspend, Task
from distune.space.op_config import TuningConfig
from distune.trial.messages import Baseline, Failure, MeasureLatency, ProbeAnswer, Result

ANSWER = ProbeAnswer({})


def workers(hosts: str) -> list[WorkerInfo]:
    return [WorkerInfo(rank, host) for rank, host in enumerate(hosts)]


def task(number: int, **kind: object) -> Task:
    body = MeasureLatency(TuningConfig(())) if kind.get("exclusive") else Baseline()
    return Task(number, body, **kind)  # type: ignore[arg-type]


def sends(instructions: list[Instruction]) -> dict[int, int]:
    return {i.rank: i.request.id for i in instructions if isinstance(i, Send)}


def answer(scheduler: Scheduler, rank: int, number: int, attempt: int = 1, body: object = ANSWER) -> list[Instruction]:
    return scheduler.on_events(ResultArrived(Result(number, attempt, rank, body)))  # type: ignore[arg-type]


def test_tasks_go_out_by_priority_then_in_order() -> None:
    scheduler = Scheduler(workers("a"))
    assert sends(scheduler.submit(task(1))) == {0: 1}
    scheduler.submit(task(2))
    scheduler.submit(task(3, priority=-1))
    assert sends(answer(scheduler, 0, 1)) == {0: 3}
    assert sends(answer(scheduler, 0, 3)) == {0: 2}


def test_a_task_for_one_rank_waits_for_it() -> None:
    scheduler = Scheduler(workers("aa"))
    scheduler.submit(task(1, rank=1))
    assert sends(scheduler.submit(task(2, rank=1))) == {}
    assert sends(answer(scheduler, 1, 1)) == {1: 2}


def test_late_and_doubled_results_are_ignored() -> None:
    scheduler = Scheduler(workers("a"))
    scheduler.submit(task(1))
    assert answer(scheduler, 0, 99) == []
    assert any(isinstance(i, Done) for i in answer(scheduler, 0, 1))
    assert answer(scheduler, 0, 1) == []


def test_a_crashed_child_costs_a_strike_and_two_end_the_task() -> None:
    scheduler = Scheduler(workers("ab"))
    scheduler.submit(task(1))
    crash = Failure("crash", "signal SIGSEGV")
    again = answer(scheduler, 0, 1, 1, crash)
    assert len(sends(again)) == 1
    rank = next(iter(sends(again)))
    final = answer(scheduler, rank, 1, 2, crash)
    assert [i.result.body for i in final if isinstance(i, Done)] == [crash]


def test_what_was_dropped_while_it_was_done_gets_no_further_attempt() -> None:
    scheduler = Scheduler(workers("ab"))
    crash = Failure("crash", "signal SIGSEGV")
    for number in (1, 2):
        scheduler.submit(task(number))
    assert scheduler.drop([1, 2]) == []
    (done,) = answer(scheduler, 0, 1, 1, crash)
    assert isinstance(done, Done)
    assert (done.task.id, done.result.body, done.wanted) == (1, crash, False)
    (done,) = scheduler.on_events(WorkerLost(1, "killed"))
    assert isinstance(done, Done)
    assert isinstance(done.result.body, Failure)
    assert (done.task.id, done.result.body.kind, done.wanted) == (2, "lost", False)


def test_what_is_wanted_again_gets_all_its_attempts() -> None:
    scheduler = Scheduler(workers("a"))
    scheduler.submit(task(1))
    scheduler.drop([1])
    scheduler.want(1)
    assert sends(answer(scheduler, 0, 1, 1, Failure("crash", "signal SIGSEGV"))) == {0: 1}
    (done,) = answer(scheduler, 0, 1, 2)
    assert isinstance(done, Done)
    assert done.wanted


def test_a_lost_worker_is_no_strike_and_its_task_is_handed_out_again() -> None:
    scheduler = Scheduler(workers("ab"))
    scheduler.submit(task(1))
    again = scheduler.on_events(WorkerLost(0, "killed"))
    assert sends(again) == {1: 1}
    assert [w.rank for w in scheduler.workers] == [1]


def test_latency_waits_until_the_host_is_quiet_and_the_neighbours_hold_still() -> None:
    scheduler = Scheduler(workers("aab"))
    for number in (1, 2, 3):
        scheduler.submit(task(number))
    asked = scheduler.submit(task(4, exclusive=True))
    host = next(i.host for i in asked if isinstance(i, Hold))
    scheduler.submit(task(5))
    here = [rank for rank, name in enumerate("aab") if name == host]
    for rank in here[:-1]:
        assert sends(answer(scheduler, rank, rank + 1)) == {}
    started = answer(scheduler, here[-1], here[-1] + 1)
    assert 4 in sends(started).values()
    rank = next(r for r, number in sends(started).items() if number == 4)
    ended = answer(scheduler, rank, 4)
    assert any(isinstance(i, Release) for i in ended)
    assert 5 in sends(ended).values()


def test_where_workers_can_be_held_latency_starts_with_the_first_idle_one_and_the_others_hold_still() -> None:
    scheduler = Scheduler(workers("aaa"), can_hold=True)
    for number in (1, 2, 3):
        scheduler.submit(task(number))
    assert sends(scheduler.submit(task(4, exclusive=True))) == {}
    started = answer(scheduler, 1, 2)
    assert sends(started) == {1: 4}
    assert [i.rank for i in started if isinstance(i, Suspend)] == [0, 2]
    assert sends(scheduler.submit(task(5))) == {}
    ended = answer(scheduler, 1, 4)
    assert [i.rank for i in ended if isinstance(i, Resume)] == [0, 2]
    assert sends(ended) == {1: 5}


def test_only_neighbours_on_the_same_host_hold_still_and_other_hosts_go_on() -> None:
    scheduler = Scheduler(workers("aabb"), can_hold=True)
    for number in (1, 2, 3, 4):
        scheduler.submit(task(number))
    scheduler.submit(task(5, exclusive=True))
    scheduler.submit(task(6))
    scheduler.submit(task(7))
    started = answer(scheduler, 1, 2)
    assert sends(started) == {1: 5}
    assert [i.rank for i in started if isinstance(i, Suspend)] == [0]
    assert sends(answer(scheduler, 2, 3)) == {2: 6}, "the other host works on meanwhile"
    assert sends(answer(scheduler, 3, 4)) == {3: 7}
    ended = answer(scheduler, 1, 5)
    assert [i.rank for i in ended if isinstance(i, Resume)] == [0]


def test_every_host_has_a_quiet_window_of_its_own() -> None:
    scheduler = Scheduler(workers("aabb"), can_hold=True)
    for number in (1, 2, 3, 4):
        scheduler.submit(task(number))
    scheduler.submit(task(5, exclusive=True))
    scheduler.submit(task(6, exclusive=True))
    first, second = answer(scheduler, 0, 1), answer(scheduler, 2, 3)
    assert {**sends(first), **sends(second)} == {0: 5, 2: 6}
    assert [i.rank for i in (*first, *second) if isinstance(i, Suspend)] == [1, 3]
    assert [i.rank for i in answer(scheduler, 0, 5) if isinstance(i, Resume)] == [1], "the other window stays"


def test_neighbours_are_held_before_the_measurement_is_handed_out() -> None:
    scheduler = Scheduler(workers("aaa"), can_hold=True)
    for number in (1, 2, 3):
        scheduler.submit(task(number))
    scheduler.submit(task(4, exclusive=True))
    kinds = [type(i) for i in answer(scheduler, 0, 1)]
    assert kinds.index(Send) > max(place for place, kind in enumerate(kinds) if kind is Suspend)


def test_neighbours_go_on_when_the_measurement_fails_or_its_worker_is_lost() -> None:
    crash = Failure("crash", "signal SIGSEGV")
    scheduler = Scheduler(workers("aa"), can_hold=True)
    scheduler.submit(task(1))
    scheduler.submit(task(2, exclusive=True))
    assert scheduler.busy.keys() == {0, 1}
    again = answer(scheduler, 1, 2, 1, crash)
    assert (sends(again), [i for i in again if isinstance(i, Resume | Suspend)]) == ({1: 2}, []), "still held"
    assert [i.rank for i in answer(scheduler, 1, 2, 2, crash) if isinstance(i, Resume)] == [0]
    scheduler.submit(task(3, exclusive=True))
    assert [i.rank for i in scheduler.on_events(WorkerLost(1, "killed")) if isinstance(i, Resume)] == [0]


def test_a_worker_that_answered_before_it_was_held_goes_on_when_the_measurement_comes_to_it() -> None:
    scheduler = Scheduler(workers("aa"), can_hold=True)
    scheduler.submit(task(1))
    scheduler.submit(task(2, exclusive=True))
    answer(scheduler, 0, 1)
    moved = [i for i in scheduler.on_events(WorkerLost(1, "killed")) if isinstance(i, Resume | Send)]
    assert [(type(i), i.rank) for i in moved] == [(Resume, 0), (Send, 0)]


@given(
    hosts=st.text(alphabet="abc", min_size=1, max_size=6),
    exclusive=st.lists(st.booleans(), max_size=15),
    seed=st.integers(0, 10_000),
)
def test_every_task_has_exactly_one_outcome_whatever_happens(hosts: str, exclusive: list[bool], seed: int) -> None:
    chance = random.Random(seed)
    scheduler = Scheduler(workers(hosts))
    running: dict[int, tuple[int, int]] = {}
    done: list[int] = []
    abandoned: set[int] = set()

    def take(instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Send):
                assert instruction.rank not in running, "a worker does one thing at a time"
                assert instruction.request.id not in abandoned, "nobody wants it"
                running[instruction.rank] = (instruction.request.id, instruction.request.attempt)
            elif isinstance(instruction, Done):
                done.append(instruction.task.id)
                assert instruction.wanted == (instruction.task.id not in abandoned)

    for number, alone in enumerate(exclusive, start=1):
        take(scheduler.submit(task(number, exclusive=alone)))
    while running:
        rank = chance.choice(sorted(running))
        if chance.random() < 0.2:
            abandoned.add(running[rank][0])
            take(scheduler.drop([running[rank][0]]))
        number, attempt = running.pop(rank)
        fate = chance.random()
        if fate < 0.15 and len(scheduler.workers) > 1:
            take(scheduler.on_events(WorkerLost(rank, "chaos")))
            continue
        quiet = [r for r in running if hosts[r] == hosts[rank]] if exclusive[number - 1] else []
        assert not quiet, "nobody else on the host works while latency is measured"
        body = Failure("crash", "chaos") if fate > 0.85 else ANSWER
        event = ResultArrived(Result(number, attempt, rank, body))
        take(scheduler.on_events(event))
        if chance.random() < 0.2 and rank not in running:
            assert not any(isinstance(i, Done) for i in scheduler.on_events(event))
    assert sorted(done) == list(range(1, len(exclusive) + 1))
