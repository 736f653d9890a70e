"""One child process: its life, its line to the agent, and what it prints."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import distune
from distune.config.launcher_variables import without_launcher
from distune.distributed.frames import FrameDecoder
from distune.distributed.memory import resident_bytes

TAIL_BYTES = 4096
"""How much of a dead child's last words goes into the failure."""

_CHUNK = 1 << 20
_CLOSE_S = 2.0
_ROTATE_BYTES = 16 << 20


class ChildProcess:
    """One child: its pid, its line, its output."""

    def __init__(self) -> None:
        self.ready = False
        self.output = ChildOutput()
        self._unsent = bytearray()
        self._decoder = FrameDecoder()
        self._line, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "distune.distributed.child_main"),
                    *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
                ],
                env=child_environment(os.environ),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.output.fileno(),
                stderr=self.output.fileno(),
                start_new_session=True,
            )
        self._line.setblocking(False)
        # A forked grandchild can hold the line open beyond the child's death; the pidfd tells of the death itself.
        self._pidfd: int | None = None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
        self._hung_up = False
        self._poller = select.poll()
        for descriptor in self.readable:
            self._poller.register(descriptor, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def readable(self) -> Sequence[int]:
        line = () if self._hung_up else (self._line.fileno(),)
        return line if self._pidfd is None else (*line, self._pidfd)

    @property
    def stirs(self) -> bool:
        """Whether it has said something, or ended; without pidfds always, since only ``has_ended`` can tell then."""
        return self._pidfd is None or bool(self._poller.poll(0))

    @property
    def writable(self) -> Sequence[int]:
        return (self._line.fileno(),) if self._unsent and not self._hung_up else ()

    def send(self, frame: bytes) -> None:
        self._unsent += frame
        self.flush()

    def flush(self) -> None:
        if not self._unsent:
            return
        sent = 0
        with memoryview(self._unsent) as view, contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionError):
            while sent < len(view):
                sent += self._line.send(view[sent : sent + _CHUNK])
        del self._unsent[:sent]

    def receive(self, to_the_end: bool) -> list[Any]:
        messages: list[Any] = []
        while not self._hung_up:
            try:
                data = self._line.recv(_CHUNK)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self._hung_up = True
                self._poller.unregister(self._line)
                break
            messages += self._decoder.feed(data)
            if len(data) < _CHUNK and not to_the_end:
                break
        return messages

    def has_ended(self) -> bool:
        """Whether it is dead; leaves the zombie, so that the process group's id cannot be anybody else's yet."""
        if self._popen.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # reaped by somebody else in this process
            return True

    def end(self, close: bytes | None = None) -> None:
        """End it and its group; in peace first where ``close`` asks for it."""
        if self._popen.returncode is not None:
            return
        if close is not None and not self.has_ended():
            self.send(close)
            self._wait_for_death(_CLOSE_S)
        self.signal_group(signal.SIGKILL)
        self._popen.wait()

    def _wait_for_death(self, seconds: float) -> None:
        """Sleep until the child is dead, at most ``seconds``; leaves the zombie where the system has pidfds."""
        if self._pidfd is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
        else:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.poll(seconds * 1e3)

    def signal_group(self, number: signal.Signals) -> None:
        if self._popen.returncode is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # it has not made its session yet
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)

    def cause_of_death(self) -> str:
        code = self._popen.returncode
        if code is None or code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = "; the kernel kills processes this way when memory runs out" if name == "SIGKILL" else ""
        return f"killed by signal {name}{hint}"

    def resident_bytes(self) -> int:
        """Resident bytes of the child and all its descendants."""
        return resident_bytes(self.pid)

    def release(self) -> None:
        self._line.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.output.close()


class ChildOutput:
    """What a child prints: an unlinked file, so that a full pipe never stops a trial, read from time to time."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="distune-output-")  # noqa: SIM115 - lives as long as the child
        descriptor = self._file.fileno()
        # Parent and child share the file's position; appending makes the child independent of it.
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
        self._position = 0
        self._tail = b""

    def fileno(self) -> int:
        return self._file.fileno()

    def collect(self) -> bytes:
        """What was printed since the last call."""
        if self._file.closed:
            return b""
        collected = bytearray()
        while data := os.pread(self._file.fileno(), _CHUNK, self._position):
            self._position += len(data)
            collected += data
        self._tail = (self._tail + collected)[-TAIL_BYTES:]
        if self._position > _ROTATE_BYTES:
            # Everything is read: a run of hours that prints all the time must not fill the disk.
            os.ftruncate(self._file.fileno(), 0)
            self._position = 0
        return bytes(collected)

    def tail(self) -> str:
        """The last 4 kB."""
        return self._tail.decode(errors="replace")

    def close(self) -> None:
        self._file.close()


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what an MPI launcher put there, and with the parent's import path for the start."""
    kept = without_launcher(environment)
    package = str(Path(distune.__file__).resolve().parents[1])
    # The setup message gives the child the exact path; this is for the imports that come before it.
    kept["PYTHONPATH"] = os.pathsep.join([path for path in sys.path if path] + [package])
    kept["PYTHONSAFEPATH"] = "1"
    return kept
