"""Latency of one model alone: the median of short blocks, with an interval that needs no form of noise.

To compare two models use ``latency.measure``: two medians from two moments of a machine differ by more than the models.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from distune.evaluation.blocks import BLOCK_SECONDS, Clock, Run
from distune.evaluation.latency import median_interval

_FIRST_LOOK = 16


@dataclass(frozen=True)
class SingleLatency:
    """One model.

    Attributes:
        ms: Median milliseconds of one run.
        low_ms, high_ms: 95% confidence interval of that median.
        runs: Runs that were timed.
        seconds: How long the timed part took.
    """

    ms: float
    low_ms: float
    high_ms: float
    runs: int
    seconds: float


def measure_alone(
    run: Run,
    *,
    warmup: int = 5,
    iteration: int = -1,
    target_half_width: float = 0.01,
    min_seconds: float = 0.0,
    max_seconds: float = 10.0,
    clock: Clock = time.perf_counter_ns,
) -> SingleLatency:
    """Time ``run`` until the interval is tight or the budget is spent.

    Args:
        run: Runs the model once.
        warmup: Untimed runs first.
        iteration: Timed runs at most; -1 sets no limit.
        target_half_width: Half the interval's width that ends the measurement, as a share of the median.
        min_seconds: Go on for so long although the interval is tight, for instances that load the machine together.
        max_seconds: Budget of the timed part.
        clock: Nanoseconds of a monotonic clock.
    """
    for _ in range(warmup):
        run()
    size = _runs_per_block(run, clock)
    if iteration > 0:
        size = max(1, min(size, iteration // _FIRST_LOOK))
    times: list[float] = []
    start = clock()
    look = _FIRST_LOOK
    while True:
        began = clock()
        for _ in range(size):
            run()
        now = clock()
        times.append(max(now - began, 1) / size)
        elapsed = (now - start) * 1e-9
        if (iteration > 0 and (len(times) + 1) * size > iteration) or elapsed >= max_seconds:
            break
        if len(times) >= look and elapsed >= min_seconds:
            low, high = median_interval(times)
            if (high - low) / 2 <= target_half_width * statistics.median(times):
                break
            look += look // 2
    low, high = median_interval(times)
    return SingleLatency(
        statistics.median(times) * 1e-6, low * 1e-6, high * 1e-6, len(times) * size, (clock() - start) * 1e-9
    )


def _runs_per_block(run: Run, clock: Clock) -> int:
    """So many that a block is long against the clock's resolution."""
    size = 1
    while True:
        began = clock()
        for _ in range(size):
            run()
        elapsed = (clock() - began) * 1e-9
        if elapsed >= BLOCK_SECONDS / 2 or size >= 1 << 20:
            return size
        size *= 2
