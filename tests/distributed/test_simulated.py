"""The virtual clock and the faults of the simulated transport."""

from __future__ import annotations

from dataclasses import replace

from distune.distributed.simulated import Faults, SimulatedTransport
from distune.distributed.transport import Event, ResultArrived, WorkerLost
from distune.trial.messages import Failure, ProbeAnswer, Request, ResultBody
from tests.distributed.runners import ask


def seconds(rank: int, request: Request) -> tuple[ResultBody, float]:
    """A request takes as many seconds as its id says."""
    return ProbeAnswer({}), float(request.id)


def run(transport: SimulatedTransport, until: float = 1000.0) -> list[tuple[float, str]]:
    """Time and kind of every event until then."""
    found: list[tuple[float, str]] = []
    while transport.now() < until:
        for event in transport.poll(until - transport.now()):
            found.append((transport.now(), shown(event)))
    return found


def shown(event: Event) -> str:
    if isinstance(event, WorkerLost):
        return f"lost {event.rank}"
    assert isinstance(event, ResultArrived)
    kind = f" {event.result.body.kind}" if isinstance(event.result.body, Failure) else ""
    return f"{event.result.request_id} by {event.result.rank}{kind}"


def test_workers_work_side_by_side_and_each_in_order() -> None:
    transport = SimulatedTransport(seconds, 2)
    for rank, number in ((0, 3), (0, 1), (1, 2)):
        transport.send(rank, ask(number))
    assert run(transport) == [(2.0, "2 by 1"), (3.0, "3 by 0"), (4.0, "1 by 0")]


def test_nothing_happens_before_its_time() -> None:
    transport = SimulatedTransport(seconds, 1)
    transport.send(0, ask(5))
    assert transport.poll(4.5) == []
    assert transport.now() == 4.5
    assert run(transport) == [(5.0, "5 by 0")]


def test_a_lost_worker_answers_no_more() -> None:
    transport = SimulatedTransport(seconds, 2, Faults(lost={1: 3.0}))
    transport.send(1, ask(2))
    transport.send(1, ask(4))
    assert run(transport) == [(2.0, "2 by 1"), (3.0, "lost 1")]
    assert [worker.rank for worker in transport.workers] == [0]


def test_answers_can_be_delayed_and_doubled() -> None:
    faults = Faults(
        delay=lambda rank, request: 10.0 if request.id == 1 else 0.0,
        duplicates=lambda rank, request: 0.5 if request.id == 2 else None,
    )
    transport = SimulatedTransport(seconds, 1, faults)
    transport.send(0, ask(1))
    transport.send(0, ask(2))
    assert run(transport) == [(3.0, "2 by 0"), (3.5, "2 by 0"), (11.0, "1 by 0")]


def test_deadlines_cancelling_and_holding() -> None:
    transport = SimulatedTransport(seconds, 2)
    transport.send(0, replace(ask(50), deadline_s=7.0))
    transport.send(1, ask(20))
    transport.poll(5.0)
    transport.hold(1)
    transport.poll(1.0)
    transport.release(1)
    assert run(transport, until=22.0) == [(7.0, "50 by 0 deadline"), (21.0, "20 by 1")]
    transport.send(0, ask(90))
    transport.cancel(0, 90)
    assert run(transport, until=30.0) == [(22.0, "90 by 0 cancelled")]
