"""Signals in the first moments: what is imported before a run can end in order takes a few tenths of a second.

Imports next to nothing itself: until it is called Python's own handlers are in place.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_INTERRUPTED = 75
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PMI_ID")


def end_quietly_when_asked() -> None:
    """Until a run takes signals itself, INT, TERM and USR1 end this process at once, without a traceback, with 75.

    A rank above 0 leaves TERM and USR1, which launchers and batch systems hand to every rank, to rank 0.
    """
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    signal.signal(signal.SIGINT, _leave)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _leave if rank == "0" else signal.SIG_IGN)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"distune: interrupted\n")
    os._exit(_INTERRUPTED)
