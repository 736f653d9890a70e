"""While a strategy thinks, the master goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from distune.distributed.simulated import SimulatedTransport
from distune.distributed.transport import Event
from distune.engine.dispatcher import Dispatcher, Interrupted
from distune.errors import UsageError
from distune.trial.messages import Inspect, ProbeAnswer, Request


def dispatcher(on_event: Callable[[Event], None] = lambda event: None) -> Dispatcher:
    def answer(rank: int, request: Request) -> tuple[ProbeAnswer, float]:
        return ProbeAnswer({"a": 1.0}), 0.0

    return Dispatcher(SimulatedTransport(answer), on_event=on_event)


def test_what_the_work_returns_or_raises_reaches_the_caller() -> None:
    def wrong() -> None:
        raise UsageError("no")

    assert dispatcher().meanwhile(lambda: 3) == 3
    with pytest.raises(UsageError, match="no"):
        dispatcher().meanwhile(wrong)


def test_answers_are_handled_while_the_work_goes_on() -> None:
    arrived = threading.Event()
    master = dispatcher(lambda event: arrived.set())
    master.submit(Inspect())
    assert master.meanwhile(lambda: arrived.wait(20))


def test_an_interruption_does_not_wait_for_the_work() -> None:
    released = threading.Event()
    master = dispatcher()
    master.interruption = "Ctrl-C"
    with pytest.raises(Interrupted):
        master.meanwhile(lambda: released.wait(20))
    released.set()
