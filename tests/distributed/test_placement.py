"""Cores and threads of the ranks of a node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from distune.distributed.placement import Placement, place, settle
from distune.distributed.resources import Resources
from distune.distributed.transport import WorkerInfo
from tests.distributed.mpirun import needs_mpirun, run_program


def ranks(count: int, cores: Sequence[int], limit: float | None = None, host: str = "a") -> list[WorkerInfo]:
    known = Resources(tuple(cores), limit, 1 << 30)
    return [WorkerInfo(rank, host, rank, resources=known) for rank in range(count)]


def test_cores_are_divided_without_overlap_and_none_is_left() -> None:
    placed, warnings = place(ranks(3, range(8)))
    assert [placed[rank].cores for rank in range(3)] == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert {placement.threads for placement in placed.values()} == {2}
    assert not warnings


def test_a_quota_lowers_the_threads_but_leaves_the_cores_to_the_kernel() -> None:
    placed, warnings = place(ranks(2, range(8), 2.0))
    assert [placed[rank] for rank in range(2)] == [Placement((0, 1, 2, 3), 1), Placement((4, 5, 6, 7), 1)]
    assert not warnings


def test_too_many_ranks_are_not_pinned_and_told_how_many_fit() -> None:
    placed, warnings = place(ranks(8, range(2)))
    assert set(placed.values()) == {Placement((), 1)}
    assert len(warnings) == 1
    assert "8 ranks share 2 usable cores; 2 there would be as fast" in warnings[0]
    assert "1 there would be as fast" in place(ranks(2, range(64), 1.5))[1][0]


def test_what_the_launcher_has_bound_stays_bound() -> None:
    bound = [WorkerInfo(r, "a", r, resources=Resources((2 * r, 2 * r + 1), None, 1)) for r in range(2)]
    placed, warnings = place(bound)
    assert set(placed.values()) == {Placement((), 2)}
    assert not warnings
    assert "--bind-to none" in place(bound, timed_threads=4)[1][0]


def test_a_rank_has_the_cores_of_a_timed_session_at_least() -> None:
    placed, warnings = place(ranks(4, range(4)), timed_threads=2)
    assert [placed[rank].cores for rank in range(4)] == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert not warnings
    assert "set cores_per_instance to 4 or less" in place(ranks(1, range(4)), timed_threads=6)[1][0]


def test_nodes_are_divided_apart_and_a_rank_alone_keeps_its_mask() -> None:
    workers = [*ranks(1, range(4)), WorkerInfo(1, "b", 0, resources=Resources(tuple(range(8)), 3.5, 1))]
    placed, _ = place(workers)
    assert placed == {0: Placement((), 4), 1: Placement((), 3)}


def test_settling_reaches_children_spares_what_the_user_set_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    core = max(before)
    undo = settle(Placement((core,), 1))
    try:
        names = "os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']"
        ask = f"import os; print(*os.sched_getaffinity(0), {names})"
        seen = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    finally:
        undo()
    assert seen.split() == [str(core), "1", "3"]
    assert os.sched_getaffinity(0) == before
    assert "OMP_NUM_THREADS" not in os.environ


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_children_of_ranks_have_cores_of_their_own() -> None:
    done = run_program("placed", ranks=2)
    (first, threads), (second, _) = done.answer["placed"]
    assert not set(first) & set(second)
    assert int(threads) == len(os.sched_getaffinity(0)) // 2
    assert done.answer["warnings"] == []
