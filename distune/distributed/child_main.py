"""The process in which trials run: ``python -m distune.distributed.child_main``, started by ``child.ChildWorker`` only.

One thread works, another reads what the agent says, so that the agent's death ends the process at once even in the
middle of a trial, and the agent never waits for a busy child to take a message.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import functools
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from distune.distributed.chaos import suffer
from distune.distributed.child_protocol import Close, Ready, Setup, decode_stop
from distune.distributed.frames import FrameDecoder, encode_frame
from distune.distributed.runner_host import RunnerHost
from distune.distributed.worker import unpack_job
from distune.trial.messages import Request

_CHUNK = 1 << 20
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until told to close, or until the parent is gone."""
    parser = argparse.ArgumentParser(prog="distune.distributed.child_main")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)

    die_with_parent(options.parent)
    faulthandler.enable()  # a crash in native code leaves the Python stack in the captured standard error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # what was printed before a crash is not lost
    _be_the_first_to_go()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        # A batch system signals every process of a job; what to do about it is the master's decision. Not SIG_IGN,
        # which programs that a trial starts would inherit.
        signal.signal(name, _leave_it_to_the_master)

    # Programs that a trial starts must not keep the line to the agent open.
    os.set_inheritable(options.fd, False)
    line = socket.socket(fileno=options.fd)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stopped: set[int] = set()
    threading.Thread(target=_read, args=(line, inbox, stopped), name="distune-agent-line", daemon=True).start()

    setup: Setup = pickle.loads(inbox.get())
    sys.path[:] = setup.python_path
    for variable, value in setup.environment:
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
    runner = RunnerHost(
        lambda: unpack_job(setup.job, setup.memory_limit, setup.paths),
        setup.runner,
        setup.host,
        setup.rank,
        setup.epoch,
        stopped.__contains__,
    )
    line.sendall(encode_frame(Ready()))
    while True:
        message = pickle.loads(inbox.get())
        if isinstance(message, Close):
            runner.close()
            return 0
        if isinstance(message, Request):
            fate = None if setup.chaos is None else setup.chaos.fate(message)
            line.sendall(encode_frame(suffer(fate, functools.partial(runner.answer, message))))
        else:
            runner.receive(message)


@contextmanager
def dying_of_errors() -> Iterator[None]:
    """An unhandled exception ends the process at once, with its traceback.

    Without the interpreter's finalisation, which waits for threads and runs code of libraries that may wait for ever:
    the agent hears of a death, but not of a child that hangs.
    """
    try:
        yield
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the request was in place
        os._exit(0)


def _read(line: socket.socket, inbox: queue.SimpleQueue[bytes], stopped: set[int]) -> None:
    """Pass messages on, still pickled: unpickling imports, and the working thread may be in the middle of imports."""
    decoder = FrameDecoder()
    with dying_of_errors():  # e.g. a trial has closed descriptors that are not its own
        while True:
            try:
                data = line.recv(_CHUNK)
            except ConnectionError:
                data = b""
            if not data:
                os._exit(0)  # the agent is gone; nobody is left to answer
            for body in decoder.bodies(data):
                request_id = decode_stop(body)
                if request_id is None:
                    inbox.put(body)
                else:
                    stopped.add(request_id)


def _be_the_first_to_go() -> None:
    """Where memory runs out the kernel is to end the trial, not the rank that can tell of it (Linux).

    Where a sandbox forbids it the kernel chooses by size, as ever.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")


def _leave_it_to_the_master(signum: int, frame: object) -> None:
    pass


if __name__ == "__main__":
    # Through the package, so that classes have one identity here and in what is unpickled.
    from distune.distributed import child_main

    with child_main.dying_of_errors():
        code = child_main.main()
    sys.exit(code)
