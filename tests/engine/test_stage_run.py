"""Decisions of a stage are taken in candidate order, whatever order the answers arrive in."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distune.engine.book import TrialBook
from distune.engine.stage_run import StageRun
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig
from distune.strategies.stage import Candidate, Stage, Trial

INT8 = OpConfig("static", TensorConfig("uint8"), TensorConfig("int8"))


def config(number: int) -> TuningConfig:
    return TuningConfig((("a", INT8), ("b", FP32)), sampling_size=number + 1)


def outcome(number: int, accuracy: float, target: float = 1.0) -> Trial:
    return Trial(0, "s", config(number), "met" if accuracy >= target else "not_met", accuracy=accuracy)


def run_stage(
    accuracies: Sequence[float], *, workers: int, seed: int = 0, budget: int = 100, stop: bool = True, **rule: str
) -> tuple[StageRun, TrialBook, int]:
    """Run a stage to its end with answers in a random order; returns the judgings that were spent as well."""
    book = TrialBook(budget)
    stage = Stage("s", [Candidate(config(i), str(i)) for i in range(len(accuracies))], **rule)  # type: ignore[arg-type]
    run = StageRun(stage, book, stop)
    shuffle = random.Random(seed)
    open_work: list[int] = []
    spent = 0
    while not run.ended:
        open_work += [int(candidate.label) for candidate in run.want(workers)]
        if open_work:
            number = open_work.pop(shuffle.randrange(len(open_work)))
            run.take(outcome(number, accuracies[number]))
            spent += 1
        elif not run.decide():
            break
        run.decide()
    return run, book, spent


@given(
    accuracies=st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.1]), max_size=12),
    workers=st.integers(1, 9),
    seed=st.integers(0, 99),
    budget=st.integers(0, 14),
    stop=st.booleans(),
    exit=st.sampled_from(["first", "none"]),
)
def test_decisions_do_not_depend_on_workers_or_arrival(
    accuracies: list[float], workers: int, seed: int, budget: int, stop: bool, exit: str
) -> None:
    _, serial, _ = run_stage(accuracies, workers=1, budget=budget, stop=stop, exit=exit)
    _, parallel, _ = run_stage(accuracies, workers=workers, seed=seed, budget=budget, stop=stop, exit=exit)
    assert parallel.trials == serial.trials


def test_first_that_meets_in_candidate_order_ends_the_stage() -> None:
    run, book, _ = run_stage([0.5, 0.6, 1.0, 1.2], workers=4, seed=3)
    result = run.result(finished=True)
    assert result.met is not None
    assert result.met.label == "2"
    assert [trial.id for trial in book.trials] == [1, 2, 3]


def test_one_worker_does_no_work_beyond_the_first_that_meets() -> None:
    _, _, spent = run_stage([0.5, 1.0, 1.2, 1.2], workers=1)
    assert spent == 2


def test_with_a_timeout_the_stage_goes_on_but_a_prefix_stage_still_ends_at_the_shortest() -> None:
    assert run_stage([0.5, 1.0, 1.2], workers=1, stop=False)[0].position == 3
    assert run_stage([0.5, 1.0, 1.2], workers=1, stop=False, use="prefix")[0].position == 2


def test_budget_smaller_than_the_stage_ends_it() -> None:
    run, book, spent = run_stage([0.5] * 10, workers=8, budget=3)
    assert run.ended
    assert run.out_of_budget
    assert (len(book.trials), spent) == (3, 3)


def test_a_config_that_a_stage_names_twice_is_judged_once_however_little_that_tells() -> None:
    stage = Stage("s", [Candidate(config(1), "a"), Candidate(config(1), "a again"), Candidate(config(2), "b")])
    run = StageRun(stage, TrialBook(10), True, lambda trial: False)
    for candidate in run.want(9):
        run.take(outcome(int(candidate.label == "b") + 1, 0.5))
    assert [decision.trial.label for decision in run.decide()] == ["a", "a again", "b"]
    assert run.ended


def test_a_reserve_is_left_for_later_stages() -> None:
    book = TrialBook(5)
    run = StageRun(Stage("s", [config(i) for i in range(9)], exit="none", reserve=3), book, True)
    for candidate in run.want(9):
        run.take(Trial(0, "s", candidate.config, "not_met", accuracy=0.5))
    run.decide()
    assert run.ended
    assert book.remaining == 3


def test_a_config_judged_before_costs_no_trial_and_no_budget() -> None:
    book = TrialBook(2)
    book.add(outcome(0, 0.7))
    run = StageRun(
        Stage("s", [Candidate(config(0), "x"), Candidate(config(1), "y"), Candidate(config(1), "z")]), book, True
    )
    assert [candidate.label for candidate in run.want(5)] == ["y"]
    run.take(outcome(1, 0.8))
    decisions = run.decide()
    assert [(d.trial.label, d.again, d.trial.id) for d in decisions] == [
        ("x", True, 1),
        ("y", False, 2),
        ("z", True, 2),
    ]
    assert run.ended


def test_an_endless_stage_of_known_configs_is_not_drawn_for_ever_once_the_budget_is_spent() -> None:
    def endless() -> object:
        number = 0
        while True:
            yield config(number)
            number += 1

    book = TrialBook(4)
    run = StageRun(Stage("s", endless(), exit="none"), book, True)  # type: ignore[arg-type]
    while not run.ended:
        for candidate in run.want(3):
            run.take(Trial(0, "s", candidate.config, "not_met", accuracy=0.5))
        run.decide()
    assert len(book.trials) == 4


@pytest.mark.parametrize("higher", [True, False])
def test_the_book_knows_the_best_and_keeps_the_earlier_of_equals(higher: bool) -> None:
    book = TrialBook(9, higher_is_better=higher)
    values = [0.5, 0.8, 0.8, 0.2]
    for number, value in enumerate(values):
        book.add(outcome(number, value))
    assert book.best is not None
    assert book.best.id == (2 if higher else 4)


def test_a_slow_trial_keeps_no_worker_waiting() -> None:
    """What was answered and waits for its turn behind the slow one leaves its place to the next."""
    book = TrialBook(100)
    run = StageRun(Stage("s", [Candidate(config(i), str(i)) for i in range(6)]), book, True)
    assert [candidate.label for candidate in run.want(2)] == ["0", "1"]
    run.take(outcome(1, 0.5))
    assert run.decide() == []
    assert [candidate.label for candidate in run.want(2)] == ["2"]


def test_the_last_candidates_are_wanted_once_all_together_and_in_the_opposite_order() -> None:
    run = StageRun(Stage("s", [Candidate(config(i), str(i)) for i in range(9)], exit="none"), TrialBook(100), True)
    named: list[list[str]] = []
    while not run.ended:
        wanted = run.want(2, last=4)
        named.append([candidate.label for candidate in wanted])
        for candidate in wanted:
            run.take(Trial(0, "s", candidate.config, "not_met", accuracy=0.5))
        run.decide()
    assert named == [["0", "1"], ["2", "3"], ["4", "5"], ["8", "7", "6"]]


def test_a_candidate_is_not_looked_at_again_while_its_answer_is_awaited() -> None:
    looked: list[str] = []
    book = TrialBook(100)
    judged = [book.add(outcome(i, 0.5)).config.hash for i in range(8)]
    stage = Stage("s", [Candidate(config(i), str(i)) for i in range(9)], exit="none")
    run = StageRun(stage, book, True, lambda trial: not looked.append(trial.config.hash))  # type: ignore[func-returns-value]
    for _ in range(5):
        run.want(3, last=9)
    assert looked == judged
