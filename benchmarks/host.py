"""The machine that figures come from, as every file of results names it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def host() -> dict[str, Any]:
    """Processor, cores, load average now, Python and the day."""
    from distune.distributed.topology import worker_info

    info = worker_info(0)
    return {
        "cpu": info.cpu,
        "isa": list(info.isa),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "when": time.strftime("%F"),
    }
