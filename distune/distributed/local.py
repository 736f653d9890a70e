"""Workers of this process alone: no MPI needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from distune.config.job import TuningJob
from distune.distributed.chaos import Chaos
from distune.distributed.child import ChildWorker
from distune.distributed.limits import memory_limits
from distune.distributed.output import OutputLog
from distune.distributed.placement import place, settle
from distune.distributed.runner_host import DEFAULT_RUNNER
from distune.distributed.topology import worker_info
from distune.distributed.transport import Event, ResultArrived, Transport, WorkerInfo
from distune.distributed.worker import InlineWorker, Worker, pack_job, wait_for
from distune.errors import TransportError, WorkspaceError
from distune.trial.messages import Broadcast, Request


class LocalTransport(Transport):
    """One worker, or several children, of this process.

    Args:
        job: What the run is about; ``job.isolation`` decides whether trials run in children or in this process.
        workers: How many; more than one needs ``isolation: process``.
        runner: Dotted name of the runner's class.
        log_dir: Where ``rank-N.log`` gets what worker N prints; standard error where ``None``.
        chaos: What is to go wrong on purpose.

    Raises:
        UsageError: The job holds an object that cannot travel to a child.
        ValueError: Several workers are asked for in this process.
    """

    def __init__(
        self,
        job: TuningJob,
        *,
        workers: int = 1,
        runner: str = DEFAULT_RUNNER,
        log_dir: Path | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        if workers < 1 or (workers > 1 and job.isolation == "none"):
            raise ValueError(f"{workers} local workers with isolation: {job.isolation}")
        self._epoch = time.monotonic()
        self._log = OutputLog(log_dir)
        own = worker_info(0)
        self._infos = tuple(replace(own, rank=rank, local_rank=rank) for rank in range(workers))
        placements, self.warnings = place([own], job.evaluation.performance.cores_per_instance)
        self._unsettle = settle(placements[0])
        self._workers: dict[int, Worker] = {}
        if job.isolation == "none":
            self._workers[0] = InlineWorker(job, own.host, 0, runner=runner, epoch=self._epoch)
        else:
            if chaos is not None:
                chaos, told = chaos.announced(ranks_may_go=False)
                self.warnings = (*self.warnings, *told)
            packed = pack_job(job)
            limits = memory_limits(self._infos, job.limits.memory_bytes)
            for rank in range(workers):
                self._workers[rank] = ChildWorker(
                    packed,
                    own.host,
                    rank,
                    runner=runner,
                    epoch=self._epoch,
                    memory_limit=limits[rank],
                    chaos=chaos,
                )

    @property
    def workers(self) -> Sequence[WorkerInfo]:
        return self._infos if self._workers else ()

    def send(self, rank: int, message: Request | Broadcast) -> None:
        self._worker(rank).send(message)

    def cancel(self, rank: int, request_id: int) -> None:
        self._worker(rank).cancel(request_id)

    def hold(self, rank: int) -> None:
        self._worker(rank).suspend()

    def release(self, rank: int) -> None:
        self._worker(rank).resume()

    def poll(self, timeout: float) -> Sequence[Event]:
        deadline = time.monotonic() + timeout
        while True:
            events: list[Event] = []
            for rank, worker in self._workers.items():
                events += [ResultArrived(result) for result in worker.receive()]
                self._log.write(rank, worker.take_output())
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            wait_for(self._workers.values(), left)

    def now(self) -> float:
        return time.monotonic() - self._epoch

    def close(self, exit_code: int = 0) -> None:
        for rank, worker in self._workers.items():
            worker.close()
            with suppress(WorkspaceError):  # last words that a full disk does not take change no outcome
                self._log.write(rank, worker.take_output())
        self._workers.clear()
        self._unsettle()

    def _worker(self, rank: int) -> Worker:
        if rank not in self._workers:
            raise TransportError(f"there is no worker {rank}; there are: {sorted(self._workers)}")
        return self._workers[rank]
