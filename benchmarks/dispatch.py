"""What one trial costs the master: empty trials through the MPI transport, and what each layer above it adds.

The trials do nothing, so all that remains is handing them out and taking the answers: pickling, MPI, the pipes to the
children, the scheduler, the journal. With ``--sleep`` each trial sleeps so many seconds, give or take a half, so that
many ranks can share few cores. *Overhead* of a trial is the processor time of the master from one answer to the
next. Looks at the mail that found nothing are no trial's cost and shown apart, as a share of a core, and so is how
long it waits for the disk (fsync): that is the disk's doing.

    python benchmarks/dispatch.py [--trials 5000] [--np 4] [--ops 50] [--sleep 0] [--json dispatch.json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distune.config.job import ModelSpec, TuningJob
from distune.distributed.transport import Event, ResultArrived, Transport, WorkerInfo
from distune.space.op_config import OpConfig, TensorConfig, TuningConfig
from distune.trial.messages import Accuracy, Broadcast, Judge, Request, Result

GOAL_MS = 1.0
WARM_UP = 50
LOOK_S = 0.0005
SLEEP = "DISTUNE_BENCHMARK_SLEEP_S"
RUNNER = f"{Path(__file__).resolve()}:EmptyRunner"


@dataclass(frozen=True)
class Cost:
    """What one layer costs.

    Attributes:
        layer: ``transport`` alone, with the ``scheduler``, or with the ``journal`` too.
        median_ms, mean_ms, p99_ms: Master overhead per trial.
        disk_ms: Mean wait per trial outside ``poll``: the disk, and on a busy machine other processes.
        looking: Share of a core that looking for mail takes where there is none.
        trials_per_s: Through all workers together, waiting included.
    """

    layer: str
    trials: int
    ranks: int
    median_ms: float
    mean_ms: float
    p99_ms: float
    disk_ms: float
    looking: float
    trials_per_s: float


class EmptyRunner:
    """Answers at once, or after some sleep, as if the trial had met."""

    def __init__(self, job: TuningJob, host: str, rank: int) -> None:
        self._rank = rank
        self._sleep_s = float(os.environ.get(SLEEP, "0"))
        self._chance = random.Random(rank)

    def answer(self, request: Request) -> Result:
        """A made-up accuracy."""
        if self._sleep_s:
            time.sleep(self._sleep_s * self._chance.uniform(0.5, 1.5))
        return Result(
            request.id, request.attempt, self._rank, Accuracy(0.9, 0.9, 0.9, {"top1": 0.9}, 1000), request.run
        )

    def receive(self, broadcast: Broadcast) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to free."""


class Metered(Transport):
    """A transport that knows how long ``poll`` waited, and what that cost."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.waited_s = 0.0
        self.looked_s = 0.0

    @property
    def workers(self) -> Sequence[WorkerInfo]:
        return self._inner.workers

    def send(self, rank: int, message: Request | Broadcast) -> None:
        self._inner.send(rank, message)

    def cancel(self, rank: int, request_id: int) -> None:
        self._inner.cancel(rank, request_id)

    def poll(self, timeout: float) -> Sequence[Event]:
        wall, processor = time.perf_counter(), time.thread_time()
        end = wall + timeout
        while True:
            events = self._inner.poll(0.0)
            if events or time.perf_counter() >= end:
                return events
            time.sleep(LOOK_S)
            # From look to look without a gap: dozens of them lie between two answers.
            wall_before, processor_before = wall, processor
            wall, processor = time.perf_counter(), time.thread_time()
            self.looked_s += processor - processor_before
            self.waited_s += wall - wall_before - (processor - processor_before)

    def now(self) -> float:
        return self._inner.now()

    def close(self, exit_code: int = 0) -> None:
        self._inner.close(exit_code)


def configs(count: int, ops: int, salt: int) -> Iterator[TuningConfig]:
    """Different tuning configs of a model with ``ops`` ops."""
    int8 = OpConfig("static", TensorConfig("uint8", "asym"), TensorConfig("int8", granularity="per_channel"))
    for number in range(count):
        yield TuningConfig(tuple((f"block{op}/conv", int8) for op in range(ops)), sampling_size=100 + salt + number)


def by_transport(transport: Transport, trials: int, ops: int) -> Iterator[int]:
    """Every worker gets its next trial when it has answered; yields how many answers came at a time."""
    bodies = (Judge(config) for config in configs(trials, ops, 0))
    requests = (Request(number, body) for number, body in enumerate(bodies))
    for worker, request in zip(transport.workers, requests, strict=False):
        transport.send(worker.rank, request)
    answered = 0
    while answered < trials:
        ranks = [event.result.rank for event in transport.poll(1.0) if isinstance(event, ResultArrived)]
        for rank in ranks:
            following = next(requests, None)
            if following is not None:
                transport.send(rank, following)
        answered += len(ranks)
        if ranks:
            yield len(ranks)


def by_scheduler(transport: Transport, trials: int, ops: int, journal_path: Path | None = None) -> Iterator[int]:
    """The engine hands out the trials, from a window of a few per worker as a stage does."""
    from distune.engine.dispatcher import Dispatcher
    from distune.journal.journal import Journal

    dispatcher = Dispatcher(transport, run="dispatch")
    journal = None if journal_path is None else Journal.open(journal_path, {"benchmark": "dispatch"})
    if journal is not None:
        dispatcher.use(journal)
    waiting = (Judge(config) for config in configs(trials, ops, trials))
    window = 2 * len(transport.workers)
    open_tasks: list[int] = []
    answered = 0
    while answered < trials:
        while len(open_tasks) < window and (body := next(waiting, None)) is not None:
            open_tasks.append(dispatcher.submit(body))
        dispatcher.pump()
        left = [task for task in open_tasks if dispatcher.take(task) is None]
        done = len(open_tasks) - len(left)
        open_tasks = left
        answered += done
        if done:
            yield done
    if journal is not None:
        journal.close()


def measure(layer: str, drive: Callable[[Transport], Iterator[int]], transport: Transport, trials: int) -> Cost:
    """Drive ``trials`` trials through a layer and time the master."""
    metered = Metered(transport)
    overheads: list[float] = []
    begin_wall, begin = time.perf_counter(), time.thread_time()
    mark = begin
    for count in drive(metered):
        now = time.thread_time() - metered.looked_s
        overheads += [1e3 * (now - mark) / count] * count
        mark = now
    wall, processor = time.perf_counter() - begin_wall, time.thread_time() - begin
    ordered = sorted(overheads[WARM_UP:] or overheads)
    return Cost(
        layer,
        trials,
        len(transport.workers),
        round(statistics.median(ordered), 4),
        round(statistics.mean(ordered), 4),
        round(ordered[int(0.99 * (len(ordered) - 1))], 4),
        round(1e3 * max(0.0, wall - processor - metered.waited_s) / trials, 4),
        round(metered.looked_s / wall, 4),
        round(trials / wall, 1),
    )


def table(costs: Sequence[Cost]) -> str:
    """The figures for a reader."""
    lines = [
        f"{'layer':<12}{'ranks':>6}{'trials':>8}{'median ms':>11}{'mean ms':>9}{'p99 ms':>9}"
        f"{'disk ms':>9}{'looking':>9}{'trials/s':>10}"
    ]
    lines += [
        f"{cost.layer:<12}{cost.ranks:>6}{cost.trials:>8}{cost.median_ms:>11.3f}{cost.mean_ms:>9.3f}{cost.p99_ms:>9.3f}"
        f"{cost.disk_ms:>9.3f}{cost.looking:>9.1%}{cost.trials_per_s:>10.0f}"
        for cost in costs
    ]
    worst = max(cost.median_ms for cost in costs)
    lines.append(
        f"goal: median overhead of the master <= {GOAL_MS} ms a trial: {'kept' if worst <= GOAL_MS else 'MISSED'}"
    )
    return "\n".join(lines)


def run_rank(options: argparse.Namespace) -> int:
    """This process as a rank under mpirun."""
    from distune.distributed import mpi
    from distune.distributed.rank0_line import RankEnd

    communicator = mpi.connect()
    if communicator.Get_rank():
        return mpi.serve(communicator)
    with mpi.aborting_on_error(communicator), tempfile.TemporaryDirectory() as folder:
        transport = mpi.MpiTransport(TuningJob(ModelSpec("none")), communicator, runner=RUNNER)
        journal = Path(folder) / "journal.jsonl"
        count, ops = options.trials, options.ops
        drives: dict[str, Callable[[Transport], Iterator[int]]] = {
            "transport": lambda metered: by_transport(metered, count, ops),
            "scheduler": lambda metered: by_scheduler(metered, count, ops),
            "journal": lambda metered: by_scheduler(metered, count, ops, journal),
        }
        costs = [measure(layer, drive, transport, count) for layer, drive in drives.items()]
        print(table(costs))
        if options.json is not None:
            outcome: dict[str, Any] = {"goal_ms": GOAL_MS, "ops": ops, "layers": [asdict(cost) for cost in costs]}
            options.json.write_text(json.dumps(outcome, indent=2) + "\n")
        transport.close(0)
        RankEnd(os.environ).exit(0)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--np", type=int, default=4, help="ranks")
    parser.add_argument("--ops", type=int, default=50, help="ops in a tuning config: what a request weighs")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds that a trial sleeps")
    options = parser.parse_args(arguments)
    os.environ[SLEEP] = str(options.sleep)

    from distune.distributed.launcher import exec_under_mpi
    from distune.distributed.topology import launched_by_mpi

    if launched_by_mpi():
        return run_rank(options)
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exec_under_mpi(options.np, [sys.executable, str(Path(__file__).resolve()), *words])


if __name__ == "__main__":
    sys.exit(main())
