"""Memory that a process and all its descendants keep resident, found without a look at everybody else's.

Each rank watches its child several times a second, and a table of all processes takes the longer to read the more
ranks share the node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Resident bytes of process ``pid`` and its descendants; those that have ended count nothing."""
    if not Path("/proc/thread-self/children").exists():  # not Linux, or a kernel that keeps no such list
        return _by_table(pid)
    pages = 0
    for member in _family(pid):
        with suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_bytes().split()[1])
    return pages * _PAGE


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):  # the thread has ended, not the process
                for child in Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split():
                    yield from _family(int(child))


def _by_table(pid: int) -> int:
    import psutil

    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += member.memory_info().rss
    return total
