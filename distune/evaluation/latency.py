"""Latency of a candidate against fp32: paired, interleaved, with a confidence interval.

One number from one long loop says little on a machine that changes its clock rate and has neighbours. So candidate and
fp32 are timed in short blocks, in the same process, in the order A B B A and B A A B in turn: whatever drifts linearly
over a pair of blocks adds the same to both sides and cancels in their ratio. A block is many readings of the clock and
its time their median, since a scheduler that takes the core away every few milliseconds keeps step with the blocks: of
plain sums, whole measurements came out wrong.
Readings between which the kernel took a core away from this process are left out altogether: the longer a model runs,
the more of its runs that spoils, which is no property of the model. The median of the pairs' ratios shrugs off pairs
that were disturbed all the same, and its interval needs no assumption about the form of the noise, but for how much
neighbouring pairs are alike: that is estimated, and widens the interval.

The interval is that of the two models as they are loaded. Loaded again, a model is given other memory and keeps it:
two loads of one model, in one process, were up to 1.7% apart, typically 0.5%. That is a real difference between the
two, which no number of pairs and no loading anew within the process takes away.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from distune.evaluation.blocks import Block, Clock, Counter, Pair, Run, time_pair, times_preempted

CONFIDENCE = 0.95

_LOOK_CONFIDENCE = 0.99
"""Confidence that every look but the last must reach to stop. The interval is looked at again and again and the first
tight one is kept, which favours intervals that are tight by luck; a stricter stopping interval, and looks that become
rarer (``_next_look``), give the coverage back."""

_BATCHES = 10
"""Batches of neighbouring pairs whose spread says how alike neighbours are."""

_ALLOWANCE = (2.262 / 1.960) ** 2
"""For that spread being known from so few batches only: Student's t of 9 degrees of freedom instead of the normal."""

_OF_A_LOSS = 0.1
"""Of a candidate that is surely slower than fp32, the share of how much slower that may stay unknown: it cannot win."""

_FIRST_LOOK = 16
"""Pairs before the interval is looked at first; an order-statistics interval of fewer pairs is their whole range."""


@dataclass(frozen=True)
class PairedLatency:
    """Candidate against fp32.

    Attributes:
        ratio: Median of ``ratios``; below 1 the candidate is faster.
        ci_low, ci_high: Confidence interval of that median (95% from 6 pairs on; of fewer, their whole range).
        candidate_ms, baseline_ms: Median milliseconds of one run.
        blocks: Pairs in ``ratios``.
        noisy: The interval stayed wider than asked for.
        ratios: Candidate-to-fp32 ratio of each pair, in the order of measurement; without those in which one of the two
            was preempted in all of its readings, unless too few others are left.
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
    preempted: Counter = times_preempted,
) -> PairedLatency:
    """Time ``candidate`` against ``baseline`` until the ratio's interval is tight or the budget is spent.

    Args:
        candidate, baseline: Run their model once.
        warmup: Untimed runs of each before anything is timed.
        iteration: Timed runs of each at most (at least one pair is timed, which takes two); -1 sets no limit.
        target_half_width: Half the interval's width that ends the measurement, in units of the ratio; more is enough
            of a candidate that is surely slower.
        max_seconds: Budget of the timed part; the pair that crosses it is finished.
        clock: Nanoseconds of a monotonic clock.
        preempted: Grows whenever a core is taken away from this process. With this and the clock being fakes, the
            outcome is a function of what they read.
    """
    began = clock()
    with _collector_off():
        for _ in range(warmup):
            candidate()
            baseline()
        block, baseline_block = Block.sized(candidate, clock, preempted), Block.sized(baseline, clock, preempted)
        pair_limit = math.inf
        if iteration > 0:
            # Blocks are shortened where they would leave too few pairs for an interval.
            most = max(1, iteration // (2 * _FIRST_LOOK))
            block, baseline_block = block.limited(most), baseline_block.limited(most)
            pair_limit = max(1, iteration // (2 * max(block.size, baseline_block.size)))
        timed_from = clock()
        timed: list[Pair] = []
        look = _FIRST_LOOK
        tight = False
        while len(timed) < pair_limit:
            timed.append(time_pair(block, baseline_block, candidate_first=len(timed) % 2 == 0))
            if len(timed) == look:
                ratios = [pair.ratio for pair in _believed(timed)]
                low, high = median_interval(ratios, _LOOK_CONFIDENCE, likeness(ratios))
                tight = _is_tight(low, high, len(ratios), target_half_width)
                look = _next_look(look)
            if tight or (clock() - timed_from) * 1e-9 >= max_seconds:
                break
    believed = _believed(timed)
    ratios = [pair.ratio for pair in believed]
    low, high = median_interval(ratios, CONFIDENCE, likeness(ratios))
    return PairedLatency(
        ratio=statistics.median(ratios),
        ci_low=low,
        ci_high=high,
        candidate_ms=statistics.median(pair.candidate_ns for pair in believed) * 1e-6,
        baseline_ms=statistics.median(pair.baseline_ns for pair in believed) * 1e-6,
        blocks=len(ratios),
        noisy=not tight and not _is_tight(low, high, len(ratios), target_half_width),
        ratios=tuple(ratios),
        seconds=(clock() - began) * 1e-9,
    )


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE, alike: float = 1.0) -> tuple[float, float]:
    """Confidence interval of the median of ``values``, from their order statistics alone.

    The number of independent values below the true median is binomial(n, 1/2), whatever the distribution is. So the
    interval from the ``j``-th smallest to the ``j``-th largest value covers it with probability ``1 - 2 P(B < j)``; the
    largest ``j`` that keeps ``confidence`` is taken (H. A. David and H. N. Nagaraja, *Order Statistics*, 3rd edition,
    section 7.1). Values of which ``alike`` say as much as one count as ``n / alike``: the interval reaches as far into
    the ordered values, in parts of their number, as that of so many independent ones.

    Returns:
        ``(low, high)``; the whole range where there are too few values for the confidence (below 6 for 95%).

    Raises:
        ValueError: ``values`` is empty.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    ordered = sorted(values)
    n = max(1, int(len(ordered) / alike))
    # Whole numbers: P(B < j) * 2^n, built up term by term, is exact for any n.
    allowed = int((1 - confidence) / 2 * 2**53) * 2**n
    term, below, rank = 1, 1, 0  # ``below`` = sum of C(n, i) for i <= rank
    while (below + term * (n - rank) // (rank + 1)) * 2**53 <= allowed and rank + 1 < n / 2:
        term = term * (n - rank) // (rank + 1)
        rank += 1
        below += term
    rank = rank * len(ordered) // n
    return ordered[rank], ordered[len(ordered) - 1 - rank]


def likeness(values: Sequence[float]) -> float:
    """How many neighbouring ``values`` say as much about their median as one independent value; at least 1.

    Independent values fall above and below the median like tosses of a coin. Of a machine that is fast for a second and
    slow for the next, whole batches of neighbours fall to one side: the means of batches spread wider than coins allow,
    by the square root of what is returned (the method of batch means). 1 where there are too few values to tell.
    """
    size = len(values) // _BATCHES
    if size < 2:
        return 1.0
    middle = statistics.median(values)
    sides = [(value > middle) - (value < middle) for value in values]
    means = [statistics.fmean(sides[start : start + size]) for start in range(0, size * _BATCHES, size)]
    return max(1.0, _ALLOWANCE * size * statistics.variance(means))


def _believed(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The pairs that count: all where hardly any could be timed without preemption, as with runs of seconds."""
    clean = [pair for pair in pairs if not pair.spoilt]
    return clean if len(clean) >= min(_FIRST_LOOK, len(pairs)) else pairs


def _next_look(look: int) -> int:
    return look + look // 2


def _is_tight(low: float, high: float, pairs: int, target_half_width: float) -> bool:
    # Below the first look the range of a handful of pairs proves nothing, however narrow it is.
    allowed = target_half_width + _OF_A_LOSS * max(0.0, low - 1)
    return pairs >= _FIRST_LOOK and (high - low) / 2 <= allowed


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


__all__ = [
    "PairedLatency",
    "likeness",
    "measure",
    "median_interval",
]
