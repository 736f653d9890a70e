"""Latency beside a noisy neighbour: what a quiet window is worth, and whether the interval keeps its word.

The same int8 model (made by the backend from the example's configuration) is measured against fp32 again and again,
with models loaded anew each time: without neighbours (``quiet``), with a process that copies memory and multiplies
matrices on every other core (``neighbour``), and with that process held during the measurement as distune holds it
(``held``: the same ``ChildWorker.suspend``). Between them slices of a long quiet reference are taken, so that the
reference sees the same hours of the machine; its median over all pairs is the true ratio. Beside the tuner's way stands
the naive one: the mean of ten runs of one model, divided by the mean of ten runs of the other.

    DISTUNE_ASSETS=... python benchmarks/latency_noise.py [--repeats 20] [--json latency_noise.json]

The exit code is 1 where a goal is missed; on a machine that others use, ``quiet`` is not quiet (see ``load_average``).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from host import host

from distune.distributed.child import ChildWorker
from distune.distributed.worker import wait_for
from distune.evaluation.blocks import Run
from distune.evaluation.latency import PairedLatency, likeness, measure, median_interval
from distune.trial.messages import Inspect, ProbeAnswer, Request, Result

if TYPE_CHECKING:
    from distune.backends.base import Backend, Feed
    from distune.space.op_config import TuningConfig

ROOT = Path(__file__).resolve().parents[1]
SITUATIONS = ("quiet", "neighbour", "held")
MEDIAN_GOAL = 0.03
"""By how much of the quiet median the median of the held measurements may differ from it."""
COVERAGE_GOAL = 0.9
NAIVE_RUNS = 10
CLOSE = 0.03
"""A single measurement this near to the true ratio (as a share of it) counts as close."""

_START_S = 60.0
_COPIED_BYTES = 64 << 20
_MATRIX = 256
_TURN_S = 0.05


@dataclass(frozen=True)
class Measured:
    """One measurement of the tuner's, and the naive one beside it."""

    ratio: float
    ci_low: float
    ci_high: float
    noisy: bool
    blocks: int
    seconds: float
    naive: float

    def covers(self, truth: float) -> bool:
        """Whether the interval contains ``truth``."""
        return self.ci_low <= truth <= self.ci_high


@dataclass(frozen=True)
class Row:
    """One situation and one way of measuring; deviations are shares of the true ratio.

    Attributes:
        median: Of the measured ratios.
        deviation: Of that median.
        worst: Largest deviation of a single measurement.
        close: Share of measurements that deviate by less than ``CLOSE``.
        coverage: Share of intervals that contain the true ratio; ``None`` where there are no intervals.
        half_width: Median half width of the intervals.
        noisy: Share of measurements that call themselves noisy.
        seconds: Median duration of a measurement.
    """

    situation: str
    method: str
    median: float
    deviation: float
    worst: float
    close: float
    coverage: float | None = None
    half_width: float | None = None
    noisy: float | None = None
    seconds: float | None = None


class Models:
    """The candidate and fp32, loaded anew for every measurement unless they are to be kept."""

    def __init__(self, config: Path, keep: bool) -> None:
        from distune.api.names import known_names
        from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
        from distune.config.load import load_config
        from distune.data.loader import open_dataloader
        from distune.evaluation.feeds import first_feed, to_feed
        from distune.space.tuning_space import build_space

        job = load_config(config, [], known_names()).job()
        if job.calibration.dataloader is None:
            sys.exit(f"{config}: the benchmark needs calibration data in the configuration")
        backend = OnnxRuntimeBackend(job)
        facts = backend.facts()
        size = job.calibration.sampling_sizes[0]
        space = build_space(facts.capability, job.constraints, job.approach, job.recipes, (size,))
        source = open_dataloader(job.calibration.dataloader, job.seed)
        candidate = space.default()
        variant = backend.variant(candidate)
        backend.prepare_calibration(size)
        batches = ((batch.index, to_feed(batch.inputs, facts.inputs)) for batch in source.head(size))
        backend.set_statistics(variant, size, backend.calibrate(variant, batches))
        self._backend: Backend = backend
        self._config: TuningConfig = candidate
        self._feed: Feed = first_feed(source, facts.inputs, 1)
        self._kept = self._load() if keep else None

    @contextmanager
    def runs(self) -> Iterator[tuple[Run, Run]]:
        """Candidate and fp32."""
        yield self._kept or self._load()

    def _load(self) -> tuple[Run, Run]:
        candidate, baseline = self._backend.load(self._config, 1), self._backend.load(None, 1)
        return candidate.timed(self._feed), baseline.timed(self._feed)


class Hammer:
    """The neighbour: a runner that answers its first request when it is ready and never finishes the second.

    Args:
        core: Where it works.
    """

    def __init__(self, core: int, host: str, rank: int) -> None:
        os.sched_setaffinity(0, {core})
        self._rank = rank
        self._ready = False

    def answer(self, request: Request) -> Result:
        """See the class."""
        import numpy as np

        source = np.ones(_COPIED_BYTES, np.uint8)
        target = np.empty_like(source)
        matrix = np.ones((_MATRIX, _MATRIX), np.float32)
        while self._ready:
            for work in (lambda: np.copyto(target, source), lambda: matrix @ matrix):
                end = time.monotonic() + _TURN_S
                while time.monotonic() < end:
                    work()
        self._ready = True
        return Result(request.id, request.attempt, self._rank, ProbeAnswer({}), request.run)

    def close(self) -> None:
        """Nothing is kept."""


@contextmanager
def neighbours(cores: Sequence[int]) -> Iterator[Sequence[ChildWorker]]:
    """A neighbour at work on each of ``cores``."""
    workers: list[ChildWorker] = []
    try:
        for rank, core in enumerate(cores, 1):
            workers.append(ChildWorker(pickle.dumps(core), "here", rank, runner="latency_noise:Hammer"))
        for worker in workers:
            worker.send(Request(1, Inspect()))
            worker.send(Request(2, Inspect()))
        end = time.monotonic() + _START_S
        for worker in workers:
            while not (results := worker.receive()):
                wait_for([worker], 0.5)
                if time.monotonic() > end:
                    sys.exit(f"a neighbour was not ready after {_START_S:g} s")
            if not isinstance(results[0].body, ProbeAnswer):
                sys.exit(f"a neighbour failed: {results[0].body}")
            worker.receive()  # hands out the second request
        yield workers
    finally:
        for worker in workers:
            worker.close()


def main() -> int:
    """Measure, print the table. Exit code 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "launch" / "examples" / "resnet20.yaml")
    parser.add_argument("--repeats", type=int, default=20, help="measurements in each situation")
    parser.add_argument("--reference-seconds", type=float, default=4.0, help="length of each slice of the reference")
    parser.add_argument("--seconds", type=float, default=20.0, help="budget of one measurement; distune's own is 20")
    parser.add_argument(
        "--keep", action="store_true", help="load the models once: without what differs from one load to the next"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    others = cores[1:] or cores
    os.sched_setaffinity(0, cores[:1])  # ranks are pinned as well
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    machine = {**host(), "onnxruntime": version("onnxruntime")}  # before the load of our own
    models = Models(given.config.resolve(), given.keep)
    found: dict[str, list[Measured]] = {name: [] for name in SITUATIONS}
    slices: list[PairedLatency] = []
    for _ in range(given.repeats):
        slices.append(_slice(models, given.reference_seconds))
        found["quiet"].append(_once(models, given.seconds))
        with neighbours(others) as workers:
            found["neighbour"].append(_once(models, given.seconds))
            for worker in workers:
                worker.suspend()
            found["held"].append(_once(models, given.seconds))
    pairs = [ratio for each in slices for ratio in each.ratios]
    truth = statistics.median(pairs)
    low, high = median_interval(pairs, alike=likeness(pairs))
    rows = [row for name in SITUATIONS for row in _rows(name, found[name], truth)]
    missed = _missed(rows)
    print(_table(rows, truth, (low, high), slices, missed))
    if given.json is not None:
        figures = {
            "benchmark": "latency_noise",
            "config": given.config.name,
            "host": machine,
            "neighbours": len(others),
            "repeats": given.repeats,
            "budget_s": given.seconds,
            "loaded": "once" if given.keep else "for every measurement",
            "reference": {
                "ratio": truth,
                "ci_low": low,
                "ci_high": high,
                "pairs": len(pairs),
                "seconds": sum(each.seconds for each in slices),
                "slices": [each.ratio for each in slices],
            },
            "goals": {"held_median": MEDIAN_GOAL, "held_coverage": COVERAGE_GOAL},
            "missed": missed,
            "rows": [asdict(row) for row in rows],
            "measurements": {name: [asdict(each) for each in found[name]] for name in SITUATIONS},
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if missed else 0


def _slice(models: Models, seconds: float) -> PairedLatency:
    with models.runs() as (candidate, baseline):
        return measure(candidate, baseline, target_half_width=0.0, max_seconds=seconds)


def _once(models: Models, seconds: float) -> Measured:
    with models.runs() as (candidate, baseline):
        timed = measure(candidate, baseline, max_seconds=seconds)
    with models.runs() as (candidate, baseline):
        naive = _mean_seconds(candidate) / _mean_seconds(baseline)
    return Measured(timed.ratio, timed.ci_low, timed.ci_high, timed.noisy, timed.blocks, timed.seconds, naive)


def _mean_seconds(run: Run) -> float:
    run()  # the first run is another one
    began = time.perf_counter()
    for _ in range(NAIVE_RUNS):
        run()
    return (time.perf_counter() - began) / NAIVE_RUNS


def _rows(situation: str, measured: Sequence[Measured], truth: float) -> tuple[Row, Row]:
    def row(method: str, ratios: Sequence[float], **more: float) -> Row:
        off = [abs(ratio / truth - 1) for ratio in ratios]
        middle = statistics.median(ratios)
        close = sum(each < CLOSE for each in off) / len(off)
        return Row(situation, method, middle, middle / truth - 1, max(off), close, **more)

    return (
        row(
            "distune",
            [each.ratio for each in measured],
            coverage=sum(each.covers(truth) for each in measured) / len(measured),
            half_width=statistics.median((each.ci_high - each.ci_low) / 2 for each in measured),
            noisy=sum(each.noisy for each in measured) / len(measured),
            seconds=statistics.median(each.seconds for each in measured),
        ),
        row("naive", [each.naive for each in measured]),
    )


def _missed(rows: Sequence[Row]) -> list[str]:
    """What falls short, in words."""
    quiet, held = (next(r for r in rows if (r.situation, r.method) == (name, "distune")) for name in ("quiet", "held"))
    off = abs(held.median / quiet.median - 1)
    missed = []
    if off > MEDIAN_GOAL:
        missed.append(f"the held median is {off:.1%} off the quiet one (goal {MEDIAN_GOAL:.0%})")
    if held.coverage is not None and held.coverage < COVERAGE_GOAL:
        missed.append(f"{held.coverage:.0%} of the held intervals hold the true ratio (goal {COVERAGE_GOAL:.0%})")
    return missed


def _table(
    rows: Sequence[Row],
    truth: float,
    interval: tuple[float, float],
    slices: Sequence[PairedLatency],
    missed: Sequence[str],
) -> str:
    """The figures for people."""
    own = [each.ratio for each in slices]
    lines = [
        f"true ratio {truth:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]: {sum(each.blocks for each in slices)} quiet "
        f"pairs in {len(slices)} slices, whose medians reach from {min(own):.4f} to {max(own):.4f}",
        "",
        f"{'situation':<11}{'method':<9}{'median':>8}{'off':>8}{'worst':>8}{f'< {CLOSE:.0%} off':>9}{'covers':>8}"
        f"{'+-':>8}{'noisy':>7}{'seconds':>9}",
    ]
    for row in rows:
        rest = ""
        if row.coverage is not None:
            rest = f"{row.coverage:>8.0%}{row.half_width:>8.4f}{row.noisy:>7.0%}{row.seconds:>9.2f}"
        lines.append(
            f"{row.situation:<11}{row.method:<9}{row.median:>8.4f}{row.deviation:>+8.1%}{row.worst:>8.1%}"
            f"{row.close:>9.0%}{rest}"
        )
    return "\n".join([*lines, "", *(missed or ["all goals are met"])])


if __name__ == "__main__":
    sys.exit(main())
