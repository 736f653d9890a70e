"""Signals that ask for an end: remembered from the first moment, and turned into an orderly end of the run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether somebody asked for an end.

    Attributes:
        reason: E.g. ``SIGTERM received``; ``None`` while nobody asked.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._act: Callable[[str], None] | None = None

    def on_request(self, act: Callable[[str], None]) -> None:
        """Have ``act`` called with the reason: at once where somebody has asked already, else from a signal handler."""
        self._act = act
        if self.reason is not None:
            act(self.reason)

    def request(self, reason: str) -> None:
        """Ask for an end."""
        self.reason = reason
        if self._act is not None:
            self._act(reason)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """INT, TERM and USR1 become a request for an orderly end; a second Ctrl-C ends at once.

    In another thread than the main one signals stay as they are: Python allows no other.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interruption.request(f"{signal.Signals(number).name} received")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
