"""Latency of a candidate against fp32: paired, interleaved, with a confidence interval.

One number from one long loop says little on a machine that changes its clock rate and has neighbours. So candidate and
fp32 are timed in short blocks, in the same process, in the order A B B A and B A A B in turn: whatever drifts linearly
over a pair of blocks adds the same to both sides and cancels in their ratio. A block is many readings of the clock and
its time their median, since a scheduler that takes the core away every few milliseconds keeps step with the blocks: of
plain sums, whole measurements came out wrong. The median of the pairs' ratios shrugs off pairs that were disturbed all
the same, and its interval needs no assumption about the form of the noise.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

BLOCK_SECONDS = 0.002
"""A block repeats its model until it lasts about this long."""

CHUNK_SECONDS = 0.0001
"""Time between two readings of the clock: long against a reading, short against what disturbs."""

_SURELY_LONG = 10
"""A first run of this many blocks is believed to be that long; a shorter one may only have been disturbed."""

CONFIDENCE = 0.95

_LOOK_CONFIDENCE = 0.99
"""Confidence that every look but the last must reach to stop. The interval is looked at again and again and the first
tight one is kept, which favours intervals that are tight by luck; a stricter stopping interval, and looks that become
rarer (``_next_look``), give the coverage back."""

_FIRST_LOOK = 16
"""Pairs before the interval is looked at first; an order-statistics interval of fewer pairs is their whole range."""

Run = Callable[[], object]
Clock = Callable[[], int]


class Interval(Protocol):
    """Anything with a latency ratio and its confidence interval."""

    @property
    def ratio(self) -> float: ...
    @property
    def ci_low(self) -> float: ...
    @property
    def ci_high(self) -> float: ...


@dataclass(frozen=True)
class PairedLatency:
    """Candidate against fp32.

    Attributes:
        ratio: Median of ``ratios``; below 1 the candidate is faster.
        ci_low, ci_high: Confidence interval of that median (95% from 6 pairs on; of fewer, their whole range).
        candidate_ms, baseline_ms: Median milliseconds of one run.
        blocks: Pairs that were timed.
        noisy: The interval stayed wider than asked for.
        ratios: Candidate-to-fp32 ratio of each pair, in the order of measurement.
        seconds: Wall time of the whole measurement, warm-up included.
    """

    ratio: float
    ci_low: float
    ci_high: float
    candidate_ms: float
    baseline_ms: float
    blocks: int
    noisy: bool
    ratios: tuple[float, ...]
    seconds: float


def measure(
    candidate: Run,
    baseline: Run,
    *,
    warmup: int = 5,
    iteration: int = -1,
    target_half_width: float = 0.01,
    max_seconds: float = 20.0,
    clock: Clock = time.perf_counter_ns,
) -> PairedLatency:
    """Time ``candidate`` against ``baseline`` until the ratio's interval is tight or the budget is spent.

    Args:
        candidate, baseline: Run their model once.
        warmup: Untimed runs of each before anything is timed.
        iteration: Timed runs of each at most (at least one pair is timed, which takes two); -1 sets no limit.
        target_half_width: Half the interval's width that ends the measurement, in units of the ratio.
        max_seconds: Budget of the timed part; the pair that crosses it is finished.
        clock: Nanoseconds of a monotonic clock. With a fake one the outcome is a function of its readings.
    """
    began = clock()
    with _collector_off():
        for _ in range(warmup):
            candidate()
            baseline()
        block, baseline_block = _Block.sized(candidate, clock), _Block.sized(baseline, clock)
        pair_limit = math.inf
        if iteration > 0:
            # Blocks are shortened where they would leave too few pairs for an interval.
            most = max(1, iteration // (2 * _FIRST_LOOK))
            block, baseline_block = block.limited(most), baseline_block.limited(most)
            pair_limit = max(1, iteration // (2 * max(block.size, baseline_block.size)))
        timed_from = clock()
        times: list[tuple[float, float]] = []
        look = _FIRST_LOOK
        tight = False
        while len(times) < pair_limit:
            times.append(_time_pair(block, baseline_block, clock, candidate_first=len(times) % 2 == 0))
            if len(times) == look:
                low, high = median_interval([c / b for c, b in times], _LOOK_CONFIDENCE)
                tight = (high - low) / 2 <= target_half_width
                look = _next_look(look)
            if tight or (clock() - timed_from) * 1e-9 >= max_seconds:
                break
    ratios = tuple(c / b for c, b in times)
    low, high = median_interval(ratios, CONFIDENCE)
    return PairedLatency(
        ratio=statistics.median(ratios),
        ci_low=low,
        ci_high=high,
        candidate_ms=statistics.median(c for c, _ in times) * 1e-6,
        baseline_ms=statistics.median(b for _, b in times) * 1e-6,
        blocks=len(times),
        noisy=not tight and not _is_tight(low, high, len(times), target_half_width),
        ratios=ratios,
        seconds=(clock() - began) * 1e-9,
    )


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Confidence interval of the median of independent ``values``, from their order statistics alone.

    The number of values below the true median is binomial(n, 1/2), whatever the distribution is. So the interval from
    the ``j``-th smallest to the ``j``-th largest value covers it with probability ``1 - 2 P(B < j)``; the largest ``j``
    that keeps ``confidence`` is taken (H. A. David and H. N. Nagaraja, *Order Statistics*, 3rd edition, section 7.1).

    Returns:
        ``(low, high)``; the whole range where there are too few values for the confidence (below 6 for 95%).

    Raises:
        ValueError: ``values`` is empty.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    ordered = sorted(values)
    n = len(ordered)
    # Whole numbers: P(B < j) * 2^n, built up term by term, is exact for any n.
    allowed = int((1 - confidence) / 2 * 2**53) * 2**n
    term, below, rank = 1, 1, 0  # ``below`` = sum of C(n, i) for i <= rank
    while (below + term * (n - rank) // (rank + 1)) * 2**53 <= allowed and rank + 1 < n / 2:
        term = term * (n - rank) // (rank + 1)
        rank += 1
        below += term
    return ordered[rank], ordered[n - 1 - rank]


def overlaps(a: Interval, b: Interval) -> bool:
    """Whether the intervals of ``a`` and ``b`` share a point: then neither is known to be faster."""
    return a.ci_low <= b.ci_high and b.ci_low <= a.ci_high


def tie_set(measured: Sequence[Interval]) -> tuple[int, ...]:
    """Indices of those whose interval overlaps the fastest one's (lowest ratio, the earlier of equals), ascending."""
    if not measured:
        return ()
    fastest = min(measured, key=lambda latency: latency.ratio)
    return tuple(index for index, latency in enumerate(measured) if overlaps(latency, fastest))


@dataclass(frozen=True)
class _Block:
    """How one model's block is made: ``chunks`` readings of the clock, ``runs`` runs each."""

    run: Run
    runs: int
    chunks: int

    @classmethod
    def sized(cls, run: Run, clock: Clock) -> _Block:
        """A block of about ``BLOCK_SECONDS``; the length of a run is found by running it."""
        runs = 1
        while True:
            probe = cls(run, runs, 1)
            nanoseconds = probe.time(clock)[0]
            if nanoseconds < _SURELY_LONG * BLOCK_SECONDS * 1e9:  # it may have been short but for a neighbour
                nanoseconds = min(nanoseconds, *(probe.time(clock)[0] for _ in range(2)))
            if nanoseconds >= CHUNK_SECONDS * 1e9:
                return cls(run, runs, max(1, round(BLOCK_SECONDS * 1e9 / nanoseconds)))
            runs *= 2

    @property
    def size(self) -> int:
        """Runs in the block."""
        return self.runs * self.chunks

    def limited(self, most: int) -> _Block:
        """The block with at most ``most`` runs."""
        runs = min(self.runs, most)
        return _Block(self.run, runs, min(self.chunks, most // runs))

    def time(self, clock: Clock) -> list[int]:
        """Nanoseconds of each chunk."""
        run, repeat = self.run, range(self.runs)
        times: list[int] = []
        before = clock()
        for _ in range(self.chunks):
            for _ in repeat:
                run()
            now = clock()
            times.append(now - before)
            before = now
        return times

    def per_run(self, times: Sequence[int]) -> float:
        """Median nanoseconds of one run; at least a fraction of one, should the clock not have moved."""
        return max(statistics.median(times), 1) / self.runs


def _time_pair(candidate: _Block, baseline: _Block, clock: Clock, candidate_first: bool) -> tuple[float, float]:
    """Nanoseconds of one run of the candidate and of the baseline, from two blocks of each: A B B A."""
    outer, inner = (candidate, baseline) if candidate_first else (baseline, candidate)
    outer_times = outer.time(clock)
    inner_times = inner.time(clock) + inner.time(clock)
    outer_times += outer.time(clock)
    outer_run, inner_run = outer.per_run(outer_times), inner.per_run(inner_times)
    return (outer_run, inner_run) if candidate_first else (inner_run, outer_run)


def _next_look(look: int) -> int:
    return look + look // 2


def _is_tight(low: float, high: float, pairs: int, target_half_width: float) -> bool:
    # Below the first look the range of a handful of pairs proves nothing, however narrow it is.
    return pairs >= _FIRST_LOOK and (high - low) / 2 <= target_half_width


@contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection while the clock runs; collect before, so that both sides start alike."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


__all__ = ["Interval", "PairedLatency", "measure", "median_interval", "overlaps", "tie_set"]
