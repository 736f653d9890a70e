"""``benchmark.fit``: figures of one model, from fresh processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from distune import benchmark
from distune.config import BenchmarkConfig
from distune.errors import DistuneError, UsageError
from distune.evaluation.single import measure_alone
from tests.api.small import Batches, model, samples


def test_figures_fit_together(capsys: pytest.CaptureFixture[str]) -> None:
    found = benchmark.fit(model(), BenchmarkConfig(warmup=2), b_dataloader=Batches(batch_size=4))
    assert 0 < found.low_ms <= found.latency_ms <= found.high_ms
    assert found.batch_size == 4
    (instance,) = found.instances
    assert found.throughput == pytest.approx(4 * instance.runs / instance.seconds)
    assert "samples/s of 1 instance with 1 core each" in capsys.readouterr().out


def test_iteration_limits_the_runs() -> None:
    found = benchmark.fit(model(), BenchmarkConfig(iteration=32), b_dataloader=Batches(), quiet=True)
    assert found.instances[0].runs <= 32


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_instances_run_at_the_same_time_in_processes_of_their_own(tmp_path: Path) -> None:
    images, _ = samples()

    def b_func(given: Any) -> None:
        given(images[:2])
        (tmp_path / str(os.getpid())).touch()

    found = benchmark.fit(model(), BenchmarkConfig(num_of_instance=2), b_func=b_func, quiet=True)
    pids = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
    assert len(pids) == len(found.instances) == 2
    assert str(os.getpid()) not in pids


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(UsageError, match="either b_dataloader or b_func"):
        benchmark.fit(model())
    with pytest.raises(UsageError, match="num_of_instance 1000 with 1 cores each need 1000 cores"):
        benchmark.fit(model(), BenchmarkConfig(num_of_instance=1000), b_dataloader=Batches())

    def fails(given: Any) -> None:
        raise ValueError("on purpose")

    with pytest.raises(DistuneError, match="ValueError: on purpose"):
        benchmark.fit(model(), b_func=fails)


def test_the_median_is_that_of_the_clock() -> None:
    now = [0]

    def run() -> None:
        now[0] += 3_000_000

    found = measure_alone(run, clock=lambda: now[0])
    assert (found.ms, found.low_ms, found.high_ms) == (3.0, 3.0, 3.0)
    assert found.seconds == pytest.approx(found.runs * 0.003)
