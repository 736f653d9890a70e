"""Where the output of the workers goes on the master's side."""

from __future__ import annotations

import sys
from pathlib import Path


class OutputLog:
    """Keeps what worker N prints in ``rank-N.log`` of a folder, or passes it on to standard error.

    Args:
        folder: Made when first needed; ``None`` means standard error.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def write(self, rank: int, data: bytes) -> None:
        """Add ``data`` of worker ``rank``."""
        if not data:
            return
        if self._folder is None:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / f"rank-{rank}.log", "ab") as log:
            log.write(data)
