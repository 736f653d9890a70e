"""Where the output of the workers goes on the master's side."""

from __future__ import annotations

import sys
from pathlib import Path

from distune.journal.files import workspace_error


class OutputLog:
    """Keeps what worker N prints in ``rank-N.log`` of a folder, or passes it on to standard error.

    Args:
        folder: Made when first needed; ``None`` means standard error.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._broken = False

    def write(self, rank: int, data: bytes) -> None:
        """Add ``data`` of worker ``rank``.

        Raises:
            WorkspaceError: It cannot be written; said once, what comes after that is dropped.
        """
        if not data or self._broken:
            return
        if self._folder is None:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()
            return
        path = self._folder / f"rank-{rank}.log"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as log:
                log.write(data)
        except OSError as error:
            self._broken = True
            raise workspace_error("write", path, error) from error
