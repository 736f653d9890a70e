"""What a process may use of its node, read from ``/proc`` and ``/sys`` laid out in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.distributed.resources import (
    affinity,
    cgroup_cpu_quota,
    memory_limit,
    own_resources,
    slurm_cpus,
    visible_gpus,
)

V2 = "sys/fs/cgroup"
MEMINFO = {"proc/meminfo": "MemTotal:        8388608 kB\nMemFree: 1 kB\n"}


def node(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "groups", "cores"),
    [
        ({f"{V2}/box/cpu.max": "150000 100000", f"{V2}/cpu.max": "max 100000"}, "0::/box\n", 1.5),
        ({f"{V2}/box/inner/cpu.max": "max 100000", f"{V2}/box/cpu.max": "50000 100000"}, "0::/box/inner\n", 0.5),
        ({f"{V2}/cpu.max": "200000 100000"}, "0::/not/seen/from/here\n", 2.0),
        (
            {f"{V2}/cpu/j/cpu.cfs_quota_us": "300000", f"{V2}/cpu/j/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/j\n",
            3.0,
        ),
        ({f"{V2}/cpu/cpu.cfs_quota_us": "-1", f"{V2}/cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/\n", None),
        ({}, "", None),
    ],
)
def test_the_tightest_quota_of_the_cgroup_counts(
    tmp_path: Path, files: dict[str, str], groups: str, cores: float | None
) -> None:
    assert cgroup_cpu_quota(node(tmp_path, {**files, "proc/self/cgroup": groups})) == cores


@pytest.mark.parametrize(
    ("files", "groups", "slurm", "mebibytes"),
    [
        ({f"{V2}/job/memory.max": "1073741824", f"{V2}/memory.max": "max"}, "0::/job\n", {}, 1024),
        ({f"{V2}/memory/j/memory.limit_in_bytes": "536870912"}, "4:memory:/j\n", {}, 512),
        ({f"{V2}/memory/memory.limit_in_bytes": "9223372036854771712"}, "4:memory:/\n", {}, 8192),
        ({}, "", {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "2000"}, 2000),
        ({}, "", {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "3"}, 1500),
        ({}, "", {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "0"}, 8192),
        ({f"{V2}/memory.max": "1048576"}, "0::/\n", {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "2000"}, 1),
    ],
)
def test_the_tightest_memory_limit_counts(
    tmp_path: Path, files: dict[str, str], groups: str, slurm: dict[str, str], mebibytes: int
) -> None:
    root = node(tmp_path, {**MEMINFO, **files, "proc/self/cgroup": groups})
    assert memory_limit(root, slurm) == mebibytes << 20


def test_slurms_share_of_a_node_counts_where_nothing_enforces_it(tmp_path: Path) -> None:
    inside = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "1"}
    root = node(tmp_path, {**MEMINFO, f"{V2}/cpu.max": "300000 100000", "proc/self/cgroup": "0::/\n"})
    found = own_resources(root, inside)
    assert (found.cpu_limit, found.usable_cores) == (1, 1.0)
    assert own_resources(root, {"SLURM_CPUS_ON_NODE": "1"}).cpu_limit == 3.0, "left over from elsewhere"
    assert slurm_cpus({"SLURM_JOB_ID": "7"}) is None


def test_threads_of_a_physical_core_stand_side_by_side(tmp_path: Path) -> None:
    own = affinity()
    if len(own) < 2:
        pytest.skip("needs two cores")
    # Two sockets; in the second, the first logical core.
    layout = {core: (1 if core == min(own) else 0, 0) for core in own}
    files = {}
    for core, (socket, physical) in layout.items():
        folder = f"sys/devices/system/cpu/cpu{core}/topology"
        files |= {f"{folder}/physical_package_id": f"{socket}\n", f"{folder}/core_id": f"{physical}\n"}
    found = affinity(node(tmp_path, files))
    assert (set(found), found[-1]) == (set(own), min(own))


@pytest.mark.parametrize(
    ("environment", "count"),
    [({}, 2), ({"CUDA_VISIBLE_DEVICES": ""}, 0), ({"CUDA_VISIBLE_DEVICES": "3,1,-1,0"}, 2)],
)
def test_gpus_are_those_that_cuda_would_see(tmp_path: Path, environment: dict[str, str], count: int) -> None:
    root = node(tmp_path, {"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": "", "dev/nvidia-uvm": ""})
    assert visible_gpus(root, environment) == count
