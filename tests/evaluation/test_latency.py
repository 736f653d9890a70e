"""Paired latency: the interval covers the truth, drift cancels, and the budget is kept."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distune.evaluation.latency import PairedLatency, likeness, measure, median_interval

BASELINE_NS = 700_000.0
RATIO = 0.45


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect() -> Iterator[None]:
    """What other tests have left in this process is collected before hundreds of measurements, not by each of them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Machine:
    """Two models and a clock that only they move.

    Args:
        noise: ``(random, nanoseconds so far, undisturbed nanoseconds)`` to the nanoseconds that a run takes.
    """

    def __init__(
        self,
        seed: int,
        noise: Callable[[random.Random, float, float], float] = lambda rng, now, duration: duration,
        ratio: float = RATIO,
        baseline_ns: float = BASELINE_NS,
    ) -> None:
        self.now = 0.0
        self.runs = {"candidate": 0, "baseline": 0}
        self._random = random.Random(seed)
        self._noise = noise
        self._durations = {"candidate": ratio * baseline_ns, "baseline": baseline_ns}

    def clock(self) -> int:
        return int(self.now)

    def candidate(self) -> None:
        self._run("candidate")

    def baseline(self) -> None:
        self._run("baseline")

    def measure(self, **settings: object) -> PairedLatency:
        settings = {"preempted": lambda: 0, **settings}
        return measure(self.candidate, self.baseline, clock=self.clock, **settings)  # type: ignore[arg-type]

    def _run(self, which: str) -> None:
        self.runs[which] += 1
        self.now += self._noise(self._random, self.now, self._durations[which])


def jitter(rng: random.Random, now: float, duration: float) -> float:
    return duration * max(0.2, rng.gauss(1, 0.05))


def drift(rng: random.Random, now: float, duration: float) -> float:
    """20% slower every second, as a processor that grows hot."""
    return duration * max(0.2, rng.gauss(1, 0.03)) * (1 + 0.2e-9 * now)


def neighbours(rng: random.Random, now: float, duration: float) -> float:
    """Preempted for milliseconds, every 50 ms or so."""
    duration *= 1 + abs(rng.gauss(0, 0.02))
    return duration + (rng.choice([1e6, 4e6, 10e6]) if rng.random() < duration / 50e6 else 0)


@pytest.mark.parametrize("noise", [jitter, drift, neighbours])
@pytest.mark.parametrize("target_half_width", [0.01, 0.003])
def test_the_interval_covers_the_true_ratio(
    noise: Callable[[random.Random, float, float], float], target_half_width: float
) -> None:
    runs = 80
    covered = 0
    for seed in range(runs):
        latency = Machine(seed, noise).measure(target_half_width=target_half_width, max_seconds=3)
        covered += latency.ci_low <= RATIO <= latency.ci_high
    assert covered >= 0.9 * runs


def test_runs_that_were_preempted_do_not_count() -> None:
    """A core that is shared takes 9 ms after every 3 ms of work: the longer runs of fp32 are hit more often."""
    worked, taken = 0.0, 0

    def shared(rng: random.Random, now: float, duration: float) -> float:
        nonlocal worked, taken
        worked += duration
        if worked < 3e6:
            return duration
        worked, taken = 0.0, taken + 1
        return duration + 9e6

    machine = Machine(0, shared, baseline_ns=1_700_000)
    blind = machine.measure(max_seconds=2)
    machine = Machine(0, shared, baseline_ns=1_700_000)
    latency = machine.measure(max_seconds=2, preempted=lambda: taken)
    assert latency.ratio == pytest.approx(RATIO, rel=1e-3)
    assert not latency.noisy
    assert blind.ratio < 0.9 * RATIO


def test_runs_that_are_always_preempted_count_all_the_same() -> None:
    machine = Machine(0, jitter)
    latency = machine.measure(max_seconds=2, preempted=lambda: int(machine.now))
    assert latency.ratio == pytest.approx(RATIO, rel=0.02)


def test_pairs_that_are_alike_widen_the_interval() -> None:
    assert likeness([1.0, 2.0] * 50) == likeness([1.0] * 10 + [2.0] * 9) == 1
    assert likeness([1.0] * 50 + [2.0] * 50) > 5
    values = [float(n) for n in range(100)]
    assert median_interval(values, alike=4) == (28.0, 71.0)  # the 8th of 25 is the 29th of 100
    assert median_interval(values, alike=100) == (0.0, 99.0)


def test_the_interval_covers_the_median_of_a_machine_with_moods() -> None:
    """Loud and calm for five pairs or so at a time: taken as independent, two intervals in five miss the median."""
    covered = blind = 0
    for seed in range(100):
        rng, mood, values = random.Random(seed), 0.0, []
        for _ in range(181):
            if rng.random() < 0.2:
                mood = rng.gauss(0, 1)
            values.append(mood + rng.gauss(0, 0.5))
        low, high = median_interval(values, alike=likeness(values))
        covered += low <= 0 <= high
        low, high = median_interval(values)
        blind += low <= 0 <= high
    assert covered >= 90 > 80 >= blind


def test_drift_cancels_within_a_pair() -> None:
    latency = Machine(0, lambda rng, now, duration: duration * (1 + 0.2e-9 * now)).measure()
    assert latency.ratio == pytest.approx(RATIO, rel=1e-3)
    assert max(latency.ratios) - min(latency.ratios) < 1e-2


def test_a_quiet_machine_needs_few_pairs() -> None:
    latency = Machine(0).measure()
    assert (latency.ci_low, latency.ratio, latency.ci_high) == pytest.approx((RATIO, RATIO, RATIO))
    assert latency.candidate_ms == pytest.approx(RATIO * BASELINE_NS / 1e6)
    assert latency.baseline_ms == pytest.approx(BASELINE_NS / 1e6)
    assert latency.blocks == len(latency.ratios) < 30
    assert not latency.noisy
    assert latency.seconds < 1


def test_of_a_candidate_that_is_surely_slower_little_need_be_known() -> None:
    """Twice as slow is known after a few pairs, and by how much matters to nobody."""
    slow = Machine(1, neighbours, ratio=2.0).measure(target_half_width=0.003)
    fast = Machine(1, neighbours, ratio=0.5).measure(target_half_width=0.003)
    assert 1 < slow.ci_low <= 2 <= slow.ci_high
    assert not slow.noisy
    assert slow.blocks < fast.blocks


def test_the_same_clock_gives_the_same_answer() -> None:
    assert Machine(5, jitter).measure() == Machine(5, jitter).measure()


def test_a_loud_machine_spends_its_budget_and_says_so() -> None:
    latency = Machine(1, lambda rng, now, duration: duration * rng.uniform(0.2, 5)).measure(
        target_half_width=1e-4, max_seconds=0.5
    )
    assert latency.noisy
    assert 0.5 <= latency.seconds < 0.8


@pytest.mark.parametrize("iteration", [2, 10, 32, 100, 1000])
def test_timed_runs_are_limited_by_iteration(iteration: int) -> None:
    machine = Machine(0, jitter)
    latency = machine.measure(warmup=0, iteration=iteration, target_half_width=0.0)
    sizing = 12  # the block's length is found by running it
    assert max(machine.runs.values()) <= iteration + sizing
    assert latency.blocks >= min(iteration // 2, 16)
    assert latency.noisy


def test_a_handful_of_pairs_proves_nothing_however_alike_they_are() -> None:
    assert Machine(0).measure(iteration=6).noisy


def test_very_short_runs_are_timed_in_blocks() -> None:
    machine = Machine(0, baseline_ns=300.0)
    latency = machine.measure()
    assert latency.ratio == pytest.approx(RATIO, rel=1e-2)
    assert machine.runs["candidate"] / latency.blocks > 1000


def test_one_slow_run_makes_a_block() -> None:
    machine = Machine(0, baseline_ns=3e9)
    latency = machine.measure(warmup=1, max_seconds=1)
    assert (latency.blocks, latency.noisy) == (1, True)
    assert latency.ratio == pytest.approx(RATIO)


# ------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("n", "rank"),
    # Of the 95% sign-test interval, as in Hollander and Wolfe, Nonparametric Statistical Methods, table A.4.
    [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (25, 8), (50, 18), (100, 40)],
)
def test_ranks_of_the_median_interval_are_those_of_the_tables(n: int, rank: int) -> None:
    values = [float(value) for value in range(1, n + 1)]
    assert median_interval(values) == (rank, n + 1 - rank)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=200))
def test_the_median_is_inside_its_interval(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high


# ---------------------------------------------------------------------------------------------------------- for real


@pytest.mark.assets
def test_a_loaded_model_is_as_fast_as_itself(assets: Path) -> None:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    feed = {"input": np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)}
    # Loaded once: two loads of one model differ by what memory each was given, which is a difference, and no noise.
    path = assets / "models" / "resnet20_cifar10.onnx"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    latency = measure(lambda: session.run(None, feed), lambda: session.run(None, feed), max_seconds=3)
    # One interval in twenty may miss the truth, but by no more than the resolution that was asked for.
    assert latency.ci_low - 0.01 <= 1 <= latency.ci_high + 0.01
