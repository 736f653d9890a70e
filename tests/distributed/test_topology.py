"""What a process knows of its node."""

from __future__ import annotations

import os

import pytest

from distune.distributed.topology import host_name, launched_by_mpi, worker_info


@pytest.mark.parametrize(
    ("environment", "under_mpi"),
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False),
        ({"OMPI_ALLOW_RUN_AS_ROOT": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"PMI_RANK": "0"}, True),
        ({"PMIX_RANK": "0", "SLURM_PROCID": "0"}, True),
    ],
)
def test_only_a_launchers_own_variables_mean_mpi(environment: dict[str, str], under_mpi: bool) -> None:
    assert launched_by_mpi(environment) is under_mpi


def test_a_worker_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTUNE_HOSTNAME", "node-b")
    assert host_name() == "node-b"
    info = worker_info(3, 1)
    assert info.host == "node-b"
    assert info.resources is not None
    assert 0 < info.resources.usable_cores <= len(os.sched_getaffinity(0))
    assert info.resources.memory_bytes > 0
