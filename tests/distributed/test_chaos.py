"""What ``DISTUNE_CHAOS`` says is read strictly, and strikes the same work wherever and whenever it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from distune.config.job import ModelSpec, TuningJob
from distune.distributed.chaos import Chaos
from distune.distributed.child import ChildWorker
from distune.distributed.worker import pack_job
from distune.errors import UsageError
from distune.trial.messages import Inspect, ProbeAnswer, Request
from tests.distributed.runners import ask
from tests.distributed.test_child import RUNNER, data, do, failure

SOME = range(2000)


def shared(number: int, attempt: int = 1, deadline_s: float | None = 5.0) -> Request:
    """Work of its own for each number."""
    return Request(1, ask(1, "echo", work=number).body, attempt, "run", deadline_s)


def test_every_key_is_read() -> None:
    chaos = Chaos.parse(" crash:0.1, hang:0.05,kill_rank:0.02,slow:0.1,seed:7,attempts:all ")
    assert chaos == Chaos(0.1, 0.05, 0.02, 0.1, 7, "all")
    assert Chaos.of_environment({}) is None
    assert Chaos.of_environment({"DISTUNE_CHAOS": "crash:1"}) == Chaos(crash=1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crahs:0.1", "unknown key 'crahs'; did you mean 'crash'"),
        ("zzz:0.1", "unknown key 'zzz'; expected one of crash"),
        ("crash", "'crash' has no value: write crash:VALUE"),
        ("crash:often", "crash: expected a share from 0 to 1, got 'often'"),
        ("crash:1.5", "crash: expected a share from 0 to 1, got '1.5'"),
        ("crash:nan", "crash: expected a share from 0 to 1, got 'nan'"),
        ("crash:0.1,crash:0.2", "'crash' is there twice"),
        ("crash:0.6,slow:0.6", "the shares add up to 1.2"),
        ("crash:0.1,seed:x", "seed: expected a whole number, got 'x'"),
        ("crash:0.1,attempts:none", "attempts: expected 'first' or 'all', got 'none'"),
        ("seed:7", "nothing is to go wrong"),
    ],
)
def test_what_is_wrong_with_it_is_said(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Chaos.parse(text)
    assert said in str(caught.value)
    assert "e.g. DISTUNE_CHAOS=crash" in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UsageError, match=r"crahs.*seed: expected"):
        Chaos.parse("crahs:1,seed:x")


def test_the_shares_are_kept_and_another_seed_strikes_other_work() -> None:
    fates = [Chaos(0.1, 0.1, 0.1, 0.1, seed).fate(shared(number)) for seed in (1, 2) for number in SOME]
    kinds = Counter(fate.kind if fate else "" for fate in fates)
    assert all(0.08 < kinds[kind] / len(fates) < 0.12 for kind in ("crash", "hang", "kill_rank", "slow"))
    half = len(fates) // 2
    assert fates[:half] != fates[half:]


def test_a_fate_depends_on_seed_work_and_attempt_alone() -> None:
    chaos = Chaos(crash=0.5, seed=3, attempts="all")
    for number in range(50):
        work = shared(number)
        elsewhere = Request(99, work.body, work.attempt, "another run", 700.0)
        assert chaos.fate(work) == chaos.fate(elsewhere)
    again = [chaos.fate(shared(number, attempt=2)) for number in range(50)]
    assert again != [chaos.fate(shared(number)) for number in range(50)]


def test_further_attempts_are_spared_unless_asked_for_and_the_start_always_is() -> None:
    assert Chaos(crash=1.0).fate(shared(1, attempt=2)) is None
    assert Chaos(crash=1.0, attempts="all").fate(shared(1, attempt=2)) is not None
    assert Chaos(crash=1.0).fate(Request(1, Inspect())) is None


def test_only_work_with_a_deadline_hangs() -> None:
    assert Chaos(hang=1.0).fate(shared(1, deadline_s=None)) is None


@pytest.fixture
def open_worker() -> Iterator[Callable[[Chaos], ChildWorker]]:
    opened: list[ChildWorker] = []

    def make(chaos: Chaos) -> ChildWorker:
        job = pack_job(TuningJob(ModelSpec("none")))
        opened.append(ChildWorker(job, "here", 1, runner=RUNNER, chaos=chaos))
        return opened[-1]

    yield make
    for worker in opened:
        worker.close()


def first(chaos: Chaos, wanted: Callable[[Any], bool]) -> Request:
    """The first work that meets the wanted fate."""
    return next(work for work in map(shared, SOME) if (fate := chaos.fate(work)) is not None and wanted(fate))


@pytest.mark.parametrize(
    ("death", "cause"), [("segfault", "SIGSEGV"), ("killed", "SIGKILL"), ("exit", "status 3"), ("abort", "SIGABRT")]
)
def test_a_child_dies_in_every_way_and_its_successor_does_the_work(
    open_worker: Callable[[Chaos], ChildWorker], death: str, cause: str
) -> None:
    chaos = Chaos(crash=1.0)
    worker = open_worker(chaos)
    work = first(chaos, lambda fate: fate.death == death)
    failed = failure(do(worker, work))
    assert (failed.kind, cause in failed.message) == ("crash", True)
    assert f"DISTUNE_CHAOS: crash ({death})" in failed.detail
    again = Request(work.id, work.body, 2, work.run, work.deadline_s)
    assert data(do(worker, again))["rank"] == 1


def test_a_child_hangs_until_its_deadline_and_a_slow_one_answers(
    open_worker: Callable[[Chaos], ChildWorker],
) -> None:
    assert failure(do(open_worker(Chaos(hang=1.0)), shared(1, deadline_s=0.5))).kind == "deadline"
    assert isinstance(do(open_worker(Chaos(slow=1.0)), shared(1)).body, ProbeAnswer)
