"""Signals that ask for an end: remembered from the first moment, and turned into an orderly end of the run."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTED = 75

PATIENCE_S = 9.5
"""What an orderly end may take of a process that is distune's own: batch systems kill soon after."""


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
def interruptible(own_process: bool = False) -> Iterator[Interruption]:
    """INT, TERM and USR1 become a request for an orderly end; a second Ctrl-C ends at once.

    In another thread than the main one signals stay as they are: Python allows no other.

    Args:
        own_process: The process is the command line's, not a user's program. Then the second Ctrl-C ends it without
            any further word, and so does an orderly end that takes longer than ``PATIENCE_S`` (a function of the
            user's that runs in this process, a file system that hangs): every result is on disk by then.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    asked, ask = os.pipe()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _end_now if own_process else signal.default_int_handler)
        os.write(ask, b"!")
        interruption.request(f"{signal.Signals(number).name} received")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    over, finish = os.pipe()
    watch = threading.Thread(target=_watch, args=(asked, over), name="distune-interruption", daemon=True)
    if own_process:
        watch.start()
    try:
        yield interruption
    finally:
        os.close(finish)
        if own_process:
            watch.join()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for descriptor in (asked, ask, over):
            os.close(descriptor)


def _watch(asked: int, over: int) -> None:
    """Until ``over`` is closed at its other end; ends the process where that takes too long once somebody asked."""
    readable, _, _ = select.select([asked, over], [], [])
    if over not in readable and not select.select([over], [], [], PATIENCE_S)[0]:
        os.write(2, b"distune: the orderly end takes too long; what was journalled is kept\n")
        os._exit(_INTERRUPTED)


def _end_now(number: int, frame: FrameType | None) -> None:
    """The children die with this process, the journal is on disk, and a dead run's lock is taken over."""
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
    os.write(2, show_cursor + b"\ndistune: ended at once\n")
    os._exit(_INTERRUPTED)
