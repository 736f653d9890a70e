"""Small runners for the tests of the transports: what a request asks is written in its body."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from distune.errors import CancelledError
from distune.space.op_config import TuningConfig
from distune.trial.messages import Broadcast, Failure, LoadStatistics, Probe, ProbeAnswer, Request, Result


def ask(number: int, kind: str = "echo", **args: Any) -> Request:
    """A request that ``ScriptedRunner`` understands."""
    return Request(number, Probe(kind, TuningConfig({}), args=args), run="test")


class ScriptedRunner:
    """Does what the probe's kind says."""

    def __init__(self, job: Any, host: str, rank: int) -> None:
        self.job = job
        self.host = host
        self.rank = rank
        self.received: list[str] = []
        if job.model.name == "cannot-start":
            raise RuntimeError("planted")

    def receive(self, broadcast: Broadcast) -> None:
        if isinstance(broadcast, LoadStatistics):
            self.received.append(f"statistics {broadcast.sampling_size}: {len(broadcast.blob)}")
        else:
            self.received.append(f"closed {broadcast.stage}")

    def answer(self, request: Request) -> Result:
        body = request.body
        assert isinstance(body, Probe)
        try:
            data = getattr(self, f"_{body.kind}")(**body.args)
        except CancelledError as error:
            return Result(request.id, request.attempt, self.rank, Failure("cancelled", str(error)))
        return Result(request.id, request.attempt, self.rank, ProbeAnswer({}, data or {}))

    def stop_where(self, is_unwanted: Callable[[], bool]) -> None:
        self.is_unwanted = is_unwanted

    def close(self) -> None:
        pass

    def _echo(self, **args: Any) -> dict[str, Any]:
        return {**args, "pid": os.getpid(), "rank": self.rank, "host": self.host, "received": tuple(self.received)}

    def _job(self) -> dict[str, Any]:
        return {"path": self.job.model.path, "content": Path(self.job.model.path).read_bytes()}

    def _memory(self) -> dict[str, Any]:
        return {"bytes": self.job.limits.memory_bytes}

    def _parent(self) -> dict[str, Any]:
        return {"parent": os.getppid()}

    def _parent_cpu(self) -> dict[str, Any]:
        times = psutil.Process(os.getppid()).cpu_times()
        return {"seconds": times.user + times.system}

    def _call(self) -> dict[str, Any]:
        return {"value": self.job.evaluation.eval_func(20)}

    def _environment(self) -> dict[str, Any]:
        return {"environ": dict(os.environ), "path": list(sys.path), "cwd": os.getcwd()}

    def _placed(self) -> dict[str, Any]:
        return {"cores": sorted(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"]}

    def _exit(self, code: int = 3) -> None:
        print("last words", file=sys.stderr)
        os._exit(code)

    def _spawn(self) -> dict[str, Any]:
        return {"pid": subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid}

    def _fork_and_exit(self) -> None:
        if os.fork():
            os._exit(4)
        time.sleep(60)

    def _close_descriptors(self) -> None:
        os.closerange(3, 200)

    def _sysexit(self) -> None:
        sys.exit(7)

    def _segfault(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _raise(self) -> None:
        raise ValueError("planted")

    def _print(self, text: str) -> None:
        print(text)
        os.write(1, b"raw " + text.encode() + b"\n")

    def _hang(self) -> None:
        while True:
            time.sleep(60)

    def _work_until_unwanted(self, path: str) -> None:
        Path(path).touch()
        while not self.is_unwanted():
            time.sleep(0.01)
        raise CancelledError("no longer wanted")

    def _burn(self, seconds: float) -> dict[str, Any]:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return {}

    def _blob(self, size: int) -> dict[str, Any]:
        return {"blob": bytes(size)}

    def _eat(self, size: int) -> None:
        self.food = bytearray(os.urandom(1 << 20)) * (size >> 20)
        self._hang()
