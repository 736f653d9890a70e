"""Services that a test starts in the foreground, watches, and ends by their own process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Daemons:
    """Started services; ``stop`` ends them, the last one first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> int:
        """Start ``command``, which must stay in the foreground; its output is ``NAME.out``. Gives the process id."""
        with (self._logs / f"{name}.out").open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
            )
        self._running.append((name, process))
        return process.pid

    def check(self) -> None:
        """Fails where one of them has ended."""
        for name, process in self._running:
            assert process.poll() is None, f"{name} ended with {process.returncode}: {self.log(name)}"

    def log(self, name: str) -> str:
        """What a service printed."""
        return (self._logs / f"{name}.out").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End them all."""
        for _, process in reversed(self._running):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def until(condition: Callable[[], object], what: Callable[[], str], seconds: float = 60.0) -> None:
    """Wait for ``condition``, which nothing announces."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.1)
