"""What the launcher of ``run --np N`` and rank 0 tell each other: ``mpirun`` in between is no faithful messenger.

What was seen with Open MPI 5.0: a signal that ``mpirun`` hands on before a rank has a handler for it kills the rank,
and one that is ignored here is not ignored in the ranks; where losses are tolerated (ULFM) the exit code is 0 though
all ranks have died. So rank 0 says through a named pipe that it listens to signals, and by which process id, and
later how the run has ended. The pipe's name is in the environment. It works where rank 0 is on the launcher's node,
which is the rule with ``--np``.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_LINE = "DISTUNE_LAUNCHER_LINE"
_TERMINAL = "DISTUNE_LAUNCHER_TERMINAL"


class LauncherEnd:
    """The launcher's end. Passes signals on to rank 0 as soon as that can take them.

    Attributes:
        exit_code: The run's exit code as rank 0 told it, ``None`` where it has not (yet).
        heard: Rank 0 has ever said something.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="distune-launcher-"))
        self._path = self._folder / "line"
        os.mkfifo(self._path, 0o600)
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        self._received = b""
        self._pid: int | None = None
        self._waiting: signal.Signals | None = None
        self.exit_code: int | None = None
        self.heard = False

    @property
    def environment(self) -> dict[str, str]:
        """For rank 0: where the line is, and what this process's standard error is."""
        variables = {_LINE: str(self._path)}
        with suppress(OSError):  # not a terminal
            size = os.get_terminal_size(2)
            variables[_TERMINAL] = f"{size.columns}x{size.lines}"
        return variables

    def fileno(self) -> int:
        """For ``poll``."""
        return self._descriptor

    def receive(self) -> bool:
        """Take in what rank 0 has written; ``False`` once it has gone (or has not come yet)."""
        try:
            data = os.read(self._descriptor, 4096)
        except BlockingIOError:
            return True
        self._received += data
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            self.heard = True
            if word == "listening":
                self._pid = int(value)
            elif word == "exit":
                self.exit_code = int(value)
        if not data:
            self._pid = None  # the number may soon be another process's
        self._deliver()
        return bool(data)

    def interrupt(self, number: signal.Signals) -> None:
        """Ask rank 0 for an orderly end by that signal, now or when it listens."""
        self._waiting = number
        self._deliver()

    def _deliver(self) -> None:
        if self._waiting is not None and self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, self._waiting)
            self._waiting = None

    def close(self) -> None:
        """Take the pipe away."""
        os.close(self._descriptor)
        shutil.rmtree(self._folder, ignore_errors=True)


class RankEnd:
    """Rank 0's end; does nothing where another launcher started it.

    Args:
        environment: Of this process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._descriptor: int | None = None
        if _LINE in environment:
            with suppress(OSError):  # the launcher is gone, or on another node
                self._descriptor = os.open(environment[_LINE], os.O_WRONLY | os.O_NONBLOCK)

    def listening(self) -> None:
        """From here on this process can take signals."""
        self._write(f"listening {os.getpid()}")

    def exit(self, code: int) -> None:
        """How the run has ended."""
        self._write(f"exit {code}")

    def close(self) -> None:
        """The launcher sees this end go; the end of the process does the same."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, line: str) -> None:
        if self._descriptor is not None:
            with suppress(BrokenPipeError):
                os.write(self._descriptor, line.encode() + b"\n")


def launcher_terminal(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Columns and lines of the terminal to which the launcher of ``--np`` writes; ``None`` where it writes to none."""
    columns, separator, lines = environment.get(_TERMINAL, "").partition("x")
    return (int(columns), int(lines)) if separator else None
