"""Search by sections: the answer of the linear scan, in few rounds, and a word where the accuracy is not monotone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, log
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distune.config.job import ModelSpec, TuningJob
from distune.strategies.base import StrategyContext
from distune.strategies.fallback import accumulate
from distune.strategies.prefix_search import Found, Search, section_search, trials
from distune.strategies.stage import Candidate, Stage, StageResult, Trial
from tests import synthetic
from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play


@dataclass
class Searched:
    """What a search asked and found."""

    found: Found
    rounds: list[list[int]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    known: frozenset[int] = frozenset()

    @property
    def asked(self) -> list[int]:
        return [length for lengths in self.rounds for length in lengths]

    @property
    def paid(self) -> set[int]:
        """Lengths whose answer took a trial."""
        return set(self.asked) - self.known


def answered(lengths: Sequence[int], meets: Callable[[int], bool]) -> StageResult:
    """The lengths in order, up to the first that meets."""
    config = synthetic.space().default()
    judged: list[Trial] = []
    for length in lengths:
        judged.append(Trial(length, "s", config, "met" if meets(length) else "not_met"))
        if judged[-1].met:
            break
    return StageResult(tuple(judged), next((trial for trial in judged if trial.met), None), None, finished=False)


def searched(
    first: int,
    last: int,
    meets: Callable[[int], bool],
    width: int = 3,
    limit: int = 1000,
    known: Iterable[int] = (),
) -> Searched:
    """Search, with an oracle in place of trials. ``known``: lengths that were judged before the search."""
    done = Searched(Found(None, False), known=frozenset(known))
    waiting: list[list[int]] = []

    def ask(lengths: Sequence[int], word: str) -> Stage:
        assert list(lengths) == sorted(set(lengths))
        waiting.append(list(lengths))
        done.words.append(word)
        return Stage(word, ())

    generator: Generator[Any, StageResult, Found] = section_search(
        first, last, Search("section", width, done.told.append), lambda: limit - len(done.paid), ask
    )
    try:
        next(generator)
        while True:
            result = answered(waiting.pop(), meets)
            done.rounds.append([trial.id for trial in result.trials])
            generator.send(result)
    except StopIteration as end:
        done.found = end.value
    return done


@given(
    first=st.integers(1, 2),
    count=st.integers(1, 300),
    width=st.integers(1, 8),
    answer=st.integers(0, 302),
)
def test_on_monotone_sequences_it_finds_what_the_linear_scan_finds_in_logarithmic_rounds(
    first: int, count: int, width: int, answer: int
) -> None:
    last = first + count - 1
    done = searched(first, last, lambda length: length >= answer, width)
    linear = next((length for length in range(first, last + 1) if length >= answer), None)
    assert done.found.length == linear
    narrowing = [word for word in done.words if word.startswith("round")]
    assert len(narrowing) <= ceil(log(count + 1, width + 1) - 1e-9)
    assert len(done.words) <= len(narrowing) + 1
    assert len(done.asked) == len(set(done.asked)) <= trials(count, width) + 1
    assert not done.told


@given(
    meeting=st.sets(st.integers(1, 40)),
    width=st.integers(1, 5),
    limit=st.integers(0, 60),
    known=st.sets(st.integers(1, 40)),
)
def test_whatever_the_accuracy_does_the_answer_was_seen_to_meet_and_the_budget_is_kept(
    meeting: set[int], width: int, limit: int, known: set[int]
) -> None:
    done = searched(1, 40, lambda length: length in meeting, width, limit, known)
    assert len(done.paid) <= limit
    seen = meeting.intersection(done.asked)
    assert done.found.length == min(seen, default=None)
    contradiction = seen and any(length > min(seen) and length not in meeting for length in done.asked)
    assert bool(done.told) == bool(contradiction)


def test_a_dip_next_to_the_answer_is_found_widened_and_said() -> None:
    """11 and more meet; so do 9, which is next to it, and 7."""
    done = searched(1, 15, lambda length: length in {7, 9} or length >= 11, width=1)
    assert done.asked == [1, 8, 12, 10, 11, 9, 6, 7, 2, 3, 4, 5]
    assert done.found.length == 7
    assert done.words[4:] == ["neighbours", "neighbours, widened 2", "neighbours, widened 3"]
    assert [("met with 9" in told, "not with 10" in told) for told in done.told] == [(True, True), (False, False)]
    assert "met with 7 of the groups in floating point and not with 8" in done.told[1]


def test_lengths_that_were_judged_before_leave_their_trials_for_the_neighbours() -> None:
    """8 and 12 cost nothing, so that two of five trials are left when 11 was found."""

    def meets(length: int) -> bool:
        return length in {7, 9} or length >= 11

    assert searched(1, 15, meets, width=1, limit=5).found.length == 11
    done = searched(1, 15, meets, width=1, limit=5, known={8, 12})
    assert done.asked == [1, 8, 12, 10, 11, 9, 7]
    assert done.found.length == 7


def test_with_the_last_one_alone_meeting_a_small_budget_is_enough() -> None:
    assert searched(1, 100, lambda length: length == 100, limit=3).found.length == 100


def test_the_first_round_asks_the_shortest_too() -> None:
    assert searched(1, 60, lambda length: True).asked == [1]


def test_accumulated_fallback_ends_with_the_answer_whichever_the_search() -> None:
    space = mixed_space(24, PLAIN)
    model = AdditiveModel({f"op{index}": 0.02 + index / 1000 for index in range(9)}, default_cost=0.0)
    context = StrategyContext(play("mse", space, model).book)
    assert Search.of(context) == Search("section", 3, context.tell)
    by_section = play("mse", space, model)
    assert by_section.stages[-1].name == "accumulated fallback to fp32"
    assert by_section.stages[-1].ends_run
    assert by_section.quantized() == {f"op{index}" for index in range(9, 24)}
    linear = next(
        accumulate(space, space.default(), by_section.stages[-1].order, "fp32", lambda: 100, 1, Search("linear"))
    )
    assert isinstance(linear, Stage)
    candidates = [candidate for candidate in linear.candidates if isinstance(candidate, Candidate)]
    assert len(candidates) == 23
    assert by_section.winner is not None
    assert candidates[8].config.hash == by_section.winner.config.hash
    assert len(by_section.trials) < 10


def test_the_job_says_how_to_search() -> None:
    job = TuningJob(ModelSpec("onnxruntime", "m.onnx"), search="linear", search_width=7)
    context = StrategyContext(play("mse", mixed_space(4, PLAIN), AdditiveModel()).book, job=job)
    assert (Search.of(context).kind, Search.of(context).width) == ("linear", 7)
