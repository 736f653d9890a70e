"""Work that nobody wants any more: it costs no more than what it has begun, and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distune.distributed.simulated import Faults, SimulatedTransport
from distune.engine.dispatcher import Dispatcher
from distune.journal.journal import Journal
from distune.journal.replay import known_results
from distune.trial.messages import Accuracy, Failure, Judge, Request, ResultBody
from tests import synthetic

SPACE = synthetic.space(convs=3)
UNWANTED, WANTED = (Judge(SPACE.fallback(SPACE.default(), [name])) for name in ("conv0", "conv1"))


class Setup:
    """Workers whose every answer takes 10 s, and a journal."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[int, Request], ResultBody] = lambda rank, request: scored(rank),
        workers: int = 1,
        faults: Faults | None = None,
    ) -> None:
        self.asked: list[tuple[int, Request]] = []

        def answers(rank: int, request: Request) -> tuple[ResultBody, float]:
            self.asked.append((rank, request))
            return answer(rank, request), 10.0

        self.master = Dispatcher(SimulatedTransport(answers, workers, faults), can_hold=True)
        self.journal = Journal.open(path / "journal.jsonl", {})
        self.master.use(self.journal)

    def judge(self, body: Judge) -> ResultBody:
        """The answer to ``body``."""
        return self.master.wait([self.master.submit(body)])[0].body

    @property
    def journalled(self) -> list[str]:
        """Types of the results in the journal."""
        return [str(record.data["type"]) for record in self.journal.records("result")]


def scored(value: float) -> Accuracy:
    return Accuracy(value, value, value, {"accuracy": value}, 10)


def give_up(master: Dispatcher, task: int) -> None:
    master.give_up([task])


def calm(master: Dispatcher, task: int) -> None:
    master.calm()


@pytest.mark.parametrize("end", [give_up, calm])
def test_what_is_asked_for_after_it_was_cancelled_is_done(
    tmp_path: Path, end: Callable[[Dispatcher, int], None]
) -> None:
    setup = Setup(tmp_path)
    cancelled = setup.master.submit(UNWANTED)
    end(setup.master, cancelled)
    assert setup.judge(UNWANTED) == scored(0.0)
    assert setup.journalled == ["accuracy"]
    assert setup.master.take(cancelled) is None


def test_the_answer_of_cancelled_work_that_comes_all_the_same_is_the_one_that_counts(tmp_path: Path) -> None:
    faults = Faults(delay=lambda rank, request: 5.0 if rank == 0 else 0.0)
    setup = Setup(tmp_path, workers=2, faults=faults)
    cancelled = setup.master.submit(UNWANTED)
    setup.master.pump(12.0)  # its answer is under way
    setup.master.give_up([cancelled])
    assert setup.judge(UNWANTED) == scored(0.0)
    assert [rank for rank, _ in setup.asked] == [0, 1]
    assert setup.journalled == ["accuracy"], "once"
    assert [known.body for known in known_results(setup.journal).values()] == [scored(0.0)]


@pytest.mark.parametrize("kind", ["crash", "deadline", "memory"])
def test_what_nobody_wants_is_not_tried_again_and_quarantines_nothing(tmp_path: Path, kind: str) -> None:
    def answer(rank: int, request: Request) -> ResultBody:
        return Failure(kind, "planted") if request.body == UNWANTED else scored(1.0)  # type: ignore[arg-type]

    setup = Setup(tmp_path, answer)
    setup.master.drop([setup.master.submit(UNWANTED)])
    assert setup.judge(WANTED) == scored(1.0)
    assert [request.body for _, request in setup.asked] == [UNWANTED, WANTED]
    assert setup.master.quarantine.entries == ()
    assert setup.journalled == ["accuracy"]
    assert isinstance(setup.judge(UNWANTED), Failure)
    assert [request.attempt for _, request in setup.asked[2:]] == [1, 2], "as if it had never been begun"
    assert len(setup.master.quarantine.entries) == 1


def test_the_second_strike_of_what_nobody_wants_any_more_quarantines_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path, lambda rank, request: Failure("crash", "planted"))
    task = setup.master.submit(UNWANTED)
    setup.master.pump(12.0)
    setup.master.drop([task])
    setup.master.pump(12.0)
    assert [request.attempt for _, request in setup.asked] == [1, 2]
    assert setup.master.quarantine.entries == ()
    assert setup.journalled == []


def test_what_nobody_wants_is_not_handed_to_another_worker(tmp_path: Path) -> None:
    setup = Setup(tmp_path, workers=2, faults=Faults(lost={1: 5.0}))
    first = setup.master.submit(WANTED)
    setup.master.drop([setup.master.submit(UNWANTED)])
    setup.master.wait([first])
    assert [(rank, request.body) for rank, request in setup.asked] == [(0, WANTED), (1, UNWANTED)]
    assert setup.master.active == {}
    assert setup.judge(UNWANTED) == scored(0.0)


def test_what_is_wanted_again_is_tried_again(tmp_path: Path) -> None:
    def answer(rank: int, request: Request) -> ResultBody:
        return Failure("crash", "planted") if request.attempt == 1 else scored(1.0)

    setup = Setup(tmp_path, answer)
    task = setup.master.submit(UNWANTED)
    setup.master.drop([task])
    assert setup.master.submit(UNWANTED) == task
    assert setup.judge(UNWANTED) == scored(1.0)
    assert [request.id for _, request in setup.asked] == [task, task]


def test_a_good_answer_that_nobody_wants_is_kept(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.master.drop([setup.master.submit(UNWANTED)])
    setup.judge(WANTED)
    assert setup.journalled == ["accuracy", "accuracy"]
    setup.judge(UNWANTED)
    assert len(setup.asked) == 2
