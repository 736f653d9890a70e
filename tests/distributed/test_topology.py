"""What a process knows of its node."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.distributed.topology import cgroup_cpu_quota, host_name, launched_by_mpi, usable_cores, worker_info


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


@pytest.mark.parametrize(
    ("files", "groups", "cores"),
    [
        ({"box/cpu.max": "150000 100000", "cpu.max": "max 100000"}, "0::/box\n", 1.5),
        ({"box/inner/cpu.max": "max 100000", "box/cpu.max": "50000 100000"}, "0::/box/inner\n", 0.5),
        ({"cpu.max": "200000 100000"}, "0::/not/seen/from/here\n", 2.0),
        ({"cpu/j/cpu.cfs_quota_us": "300000", "cpu/j/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/j\n", 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/\n", None),
        ({}, "", None),
    ],
)
def test_the_tightest_quota_of_the_cgroup_counts(
    tmp_path: Path, files: dict[str, str], groups: str, cores: float | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    own = tmp_path / "self"
    own.write_text(groups)
    assert cgroup_cpu_quota(tmp_path, own) == cores


def test_a_worker_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTUNE_HOSTNAME", "node-b")
    assert host_name() == "node-b"
    assert worker_info(3, 1).host == "node-b"
    assert usable_cores() > 0
