"""What every transport promises, over all of them. The MPI one is driven inside a real ``mpirun``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from distune.config.job import ModelSpec, TuningJob
from distune.distributed.local import LocalTransport
from distune.distributed.simulated import SimulatedTransport
from distune.distributed.transport import ResultArrived, Transport
from distune.errors import TransportError
from distune.trial.messages import Broadcast, Failure, LoadStatistics, ProbeAnswer, Request, Result, StageClosed
from tests.distributed.mpirun import needs_mpirun, run_program
from tests.distributed.runners import ScriptedRunner, ask

RUNNER = "tests.distributed.runners:ScriptedRunner"


def simulated() -> Transport:
    """Simulated workers that run the same runner, one second a request."""
    runners = {rank: ScriptedRunner(TuningJob(ModelSpec("none")), "simulated", rank) for rank in range(3)}

    def answer(rank: int, request: Request) -> Any:
        try:
            return runners[rank].answer(request).body, 1.0
        except ValueError as error:
            return Failure("error", f"worker {rank} failed: {error}"), 1.0

    def hear(rank: int, broadcast: Broadcast) -> None:
        runners[rank].receive(broadcast)

    return SimulatedTransport(answer, 3, hear=hear)


def local(isolation: Any, workers: int) -> Transport:
    return LocalTransport(TuningJob(ModelSpec("none"), isolation=isolation), workers=workers, runner=RUNNER)


TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "inline": lambda: local("none", 1),
    "child": lambda: local("process", 1),
    "children": lambda: local("process", 3),
    "simulated": simulated,
}


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    opened = TRANSPORTS[request.param]()
    yield opened
    opened.close()


def results(transport: Transport, count: int) -> list[Result]:
    """``count`` results, in order of arrival."""
    found: list[Result] = []
    end = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < end, f"only {found} of {count} results"
        found += [event.result for event in transport.poll(5.0) if isinstance(event, ResultArrived)]
    return found


def data(result: Result) -> dict[str, Any]:
    assert isinstance(result.body, ProbeAnswer), result
    return dict(result.body.data)


def check(transport: Transport) -> None:
    """The promises that hold for every transport; also run on rank 0 of a real MPI job."""
    ranks = [worker.rank for worker in transport.workers]
    check_every_request_is_answered_once(transport, ranks)
    check_order(transport, ranks)
    check_failure_is_an_answer(transport, ranks)
    check_no_such_worker(transport)


def check_every_request_is_answered_once(transport: Transport, ranks: Sequence[int]) -> None:
    for number in range(12):
        transport.send(ranks[number % len(ranks)], replace(ask(number, "echo", n=number), attempt=2, run="r7"))
    found = sorted(results(transport, 12), key=lambda result: result.request_id)
    assert [(r.request_id, r.attempt, r.run, data(r)["n"]) for r in found] == [(n, 2, "r7", n) for n in range(12)]
    assert [r.rank for r in found] == [ranks[n % len(ranks)] for n in range(12)]
    assert all(0 <= r.start_s <= r.end_s <= transport.now() + 0.01 for r in found)
    assert transport.poll(0.05) == []


def check_order(transport: Transport, ranks: Sequence[int]) -> None:
    last = ranks[-1]
    before = len(transport_received(transport, last))
    transport.send(last, LoadStatistics((), 100, b"abc"))
    transport.send(last, ask(1, "echo"))
    transport.send(last, StageClosed("one", "hash"))
    transport.send(last, ask(2, "echo"))
    first, second = results(transport, 2)
    assert data(first)["received"][before:] == ("statistics 100: 3",)
    assert data(second)["received"][before:] == ("statistics 100: 3", "closed one")


def transport_received(transport: Transport, rank: int) -> tuple[str, ...]:
    transport.send(rank, ask(0, "echo"))
    (found,) = results(transport, 1)
    received: tuple[str, ...] = data(found)["received"]
    return received


def check_failure_is_an_answer(transport: Transport, ranks: Sequence[int]) -> None:
    transport.send(ranks[0], ask(1, "raise"))
    transport.send(ranks[0], ask(2, "echo"))
    failed, fine = results(transport, 2)
    assert isinstance(failed.body, Failure)
    assert (failed.body.kind, failed.request_id) == ("error", 1)
    assert "planted" in failed.body.message
    assert data(fine)["rank"] == ranks[0]


def check_no_such_worker(transport: Transport) -> None:
    with pytest.raises(TransportError, match="99"):
        transport.send(99, ask(1))


def test_the_promises_hold(transport: Transport) -> None:
    check(transport)


def test_requests_that_have_not_begun_can_be_cancelled(transport: Transport) -> None:
    transport.send(0, ask(1, "echo"))
    transport.send(0, ask(2, "echo"))
    transport.cancel(0, 2)
    found = {result.request_id: result.body for result in results(transport, 2)}
    assert isinstance(found[1], ProbeAnswer)
    assert isinstance(found[2], Failure)
    assert found[2].kind == "cancelled"


def test_nothing_is_alive_after_close_and_closing_twice_is_fine(transport: Transport) -> None:
    transport.send(0, ask(1, "echo"))
    transport.close()
    transport.close(3)
    assert list(transport.workers) == []
    with pytest.raises(TransportError):
        transport.send(0, ask(2))


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.parametrize("isolation", ["process", "none"])
def test_the_promises_hold_under_mpirun(isolation: str) -> None:
    done = run_program("conformance", ranks=3, isolation=isolation, exit_code=0)
    assert done.answer == "kept", done
