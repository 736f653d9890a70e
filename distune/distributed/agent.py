"""The life of a rank above 0: fetch what the node lacks, then pass messages between rank 0 and the own worker."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import distune
from distune.distributed import mpi_protocol as p
from distune.distributed.chaos import Chaos, Fate
from distune.distributed.child import ChildWorker
from distune.distributed.files import FileStore, is_lacking
from distune.distributed.mpi_link import Backoff, MasterLostError, MpiLink
from distune.distributed.placement import settle
from distune.distributed.topology import worker_info
from distune.distributed.worker import InlineWorker, Worker, unpack_job, wait_for
from distune.errors import TransportError
from distune.trial.messages import Request

_ALIVE_S = 5.0
"""How often an agent says that it is there; far below the silence after which rank 0 takes it for lost."""


def versions() -> tuple[tuple[str, str], ...]:
    """What must be equal on all ranks."""
    python = ".".join(platform.python_version_tuple()[:2])
    return (("distune", distune.__version__), ("python", python))


class Agent:
    """A rank above 0. ``run`` returns the exit code that rank 0 decided.

    Args:
        communicator: A communicator that nobody else uses.
    """

    def __init__(self, communicator: Any) -> None:
        self._link = MpiLink(communicator)
        self._store = FileStore()
        self._expected: set[str] = set()
        self._paths: dict[str, str] = {}
        self._worker: Worker | None = None
        self._exit_code: int | None = None
        self._chaos: Chaos | None = None
        self._doomed: Fate | None = None
        self._said = time.monotonic()
        self._unsettle: Callable[[], None] = lambda: None
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            p.Manifest: self._on_manifest,
            p.Chunk: self._on_chunk,
            p.Adopt: self._on_adopt,
            p.Start: self._on_start,
            p.Work: self._on_work,
            p.Cancel: lambda message: self._working.cancel(message.request_id),
            p.Hold: lambda message: self._working.suspend(),
            p.Release: lambda message: self._working.resume(),
            p.Leave: self._on_leave,
        }

    def run(self) -> int:
        """Serve until rank 0 says that it is over.

        Raises:
            MasterLostError: Rank 0 is gone.
        """
        self._link.send(0, p.Join(worker_info(self._link.rank), versions()))
        backoff = Backoff()
        try:
            while self._exit_code is None:
                if self._step():
                    backoff.reset()
                else:
                    wait_for([self._worker] if self._worker else [], backoff.pause(self._link.sending))
        finally:
            if self._worker is not None:
                self._worker.close()
                self._pass_output()
            self._store.close()
            self._unsettle()
        self._link.send(0, p.Bye())
        self._link.drain(10.0)
        return self._exit_code

    def _step(self) -> bool:
        """One round; says whether anything happened."""
        messages = self._link.receive()
        if 0 in self._link.lost:
            raise MasterLostError
        for _, message in messages:
            self._handlers[type(message)](message)
        results = self._worker.receive() if self._worker is not None and self._exit_code is None else []
        if results and self._doomed is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        for result in results:
            self._link.send(0, p.Answer(result))
        self._pass_output()
        now = time.monotonic()
        if now - self._said > _ALIVE_S and self._worker is not None:
            self._said = now
            self._link.send(0, p.Alive())
        return bool(messages or results)

    @property
    def _working(self) -> Worker:
        if self._worker is None:
            raise TransportError("rank 0 sent work before the start")
        return self._worker

    def _on_manifest(self, message: p.Manifest) -> None:
        missing = [folder for folder in message.folders if not os.path.isdir(folder)]
        self._expected = {entry.path for entry in message.files if is_lacking(entry)}
        problems = tuple(
            f"folder {folder} does not exist on {worker_info(self._link.rank).host}; folders do not travel: "
            "copy it there, or put it on a file system that all nodes share"
            for folder in missing
        )
        self._link.send(0, p.Lacks(tuple(sorted(self._expected)), problems))

    def _on_chunk(self, message: p.Chunk) -> None:
        self._store.append(message.path, message.data)
        if not message.data:
            self._expected.discard(message.path)
            if not self._expected:
                self._paths = self._store.publish()
                self._link.send(0, p.Stored(self._paths))

    def _on_adopt(self, message: p.Adopt) -> None:
        self._paths = self._store.adopt(message.paths)
        self._link.send(0, p.Stored(self._paths))

    def _on_start(self, message: p.Start) -> None:
        info = worker_info(self._link.rank)
        epoch = time.monotonic() - message.now
        self._unsettle = settle(message.placement)
        if message.in_process:
            job = unpack_job(message.job, message.memory_limit, self._paths)
            self._worker = InlineWorker(job, info.host, info.rank, runner=message.runner, epoch=epoch)
        else:
            self._chaos = message.chaos
            self._worker = ChildWorker(
                message.job,
                info.host,
                info.rank,
                runner=message.runner,
                epoch=epoch,
                memory_limit=message.memory_limit,
                chaos=message.chaos,
                paths=self._paths,
            )

    def _on_work(self, message: p.Work) -> None:
        self._working.send(message.message)
        if self._chaos is not None and isinstance(message.message, Request):
            fate = self._chaos.fate(message.message)
            if fate is not None and fate.kind == "kill_rank":
                self._doomed = fate
                if not fate.late:
                    os.kill(os.getpid(), signal.SIGKILL)

    def _on_leave(self, message: p.Leave) -> None:
        self._exit_code = message.exit_code

    def _pass_output(self) -> None:
        if self._worker is not None and (data := self._worker.take_output()):
            self._link.send(0, p.Output(data))
