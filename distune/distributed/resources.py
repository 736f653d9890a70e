"""What this process may use of its node: cores, memory, GPUs, as its affinity mask, cgroups and Slurm allow.

The size of the machine (``os.cpu_count()``) is not what a container or a batch job may use. Every reading function
takes ``root``, below which ``/proc`` and ``/sys`` are looked for, and the environment, so that any node can be laid
out in a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_MIB = 1 << 20
_UNLIMITED_V1 = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of a page below 2**63."""


@dataclass(frozen=True)
class Resources:
    """What one process may use of its node.

    Attributes:
        cores: Logical cores of its affinity mask, threads of one physical core side by side; empty where the system
            does not say.
        cpu_limit: Cores' worth of time that the cgroup and Slurm allow it and its neighbours together, a fraction is
            possible; ``None`` where neither says.
        memory_bytes: Memory that it and its neighbours may use together: of the cgroup, of Slurm, or of the machine.
        gpus: Accelerators that it sees.
    """

    cores: tuple[int, ...]
    cpu_limit: float | None
    memory_bytes: int
    gpus: int = 0

    @property
    def usable_cores(self) -> float:
        """Cores this process may keep busy."""
        cores = float(len(self.cores) or os.cpu_count() or 1)
        return cores if self.cpu_limit is None else min(cores, self.cpu_limit)


def own_resources(root: Path = _ROOT, environment: Mapping[str, str] | None = None) -> Resources:
    """What this process may use."""
    variables = os.environ if environment is None else environment
    limits = [limit for limit in (cgroup_cpu_quota(root), slurm_cpus(variables)) if limit is not None]
    return Resources(
        affinity(root), min(limits, default=None), memory_limit(root, variables), visible_gpus(root, variables)
    )


def affinity(root: Path = _ROOT) -> tuple[int, ...]:
    """The cores of this process's mask, in the order of sockets and physical cores."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0), key=lambda core: (*_position(root, core), core)))


def cgroup_cpu_quota(root: Path = _ROOT) -> float | None:
    """CPU quota of this process's cgroup in cores, the tightest one on the way to the root; ``None``: unlimited."""
    quotas = [(_quota_v2 if v2 else _quota_v1)(folder) for folder, v2 in _folders(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def slurm_cpus(environment: Mapping[str, str]) -> int | None:
    """Processors that Slurm gave the job on this node; many clusters do not enforce it, the neighbours feel it."""
    if "SLURM_JOB_ID" not in environment:
        return None
    return _number(environment.get("SLURM_CPUS_ON_NODE", ""))


def memory_limit(root: Path = _ROOT, environment: Mapping[str, str] | None = None) -> int:
    """Bytes that this process and its neighbours may use: the least of the machine's, the cgroup's and Slurm's."""
    variables = os.environ if environment is None else environment
    limits = [limit for folder, v2 in _folders(root, "memory") if (limit := _memory(folder, v2)) is not None]
    slurm = _slurm_memory(variables)
    return min([_machine_memory(root), *limits, *([] if slurm is None else [slurm])])


def visible_gpus(root: Path = _ROOT, environment: Mapping[str, str] | None = None) -> int:
    """Accelerators this process may use: those of ``CUDA_VISIBLE_DEVICES`` where it is set, else NVIDIA's devices."""
    variables = os.environ if environment is None else environment
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        devices = root / "dev"
        return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.glob("nvidia*"))
    count = 0
    for name in visible.split(","):
        if not name.strip() or name.strip().startswith("-"):  # CUDA stops at the first invalid one
            break
        count += 1
    return count


# ------------------------------------------------------------------------------------------------------------- cgroups


def _folders(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The group of this process and all above it, and whether they are of version 2."""
    mount = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            base, v2 = mount, True
        elif controller in controllers.split(","):
            base, v2 = mount / controller, False
        else:
            continue
        folder = base / group.lstrip("/")
        # Inside a container the path may be the host's and not exist here; the mount's root is then the own group.
        while True:
            yield folder, v2
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def _quota_v2(folder: Path) -> float | None:
    fields = read(folder / "cpu.max").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(folder: Path) -> float | None:
    quota, period = read(folder / "cpu.cfs_quota_us").strip(), read(folder / "cpu.cfs_period_us").strip()
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _memory(folder: Path, v2: bool) -> int | None:
    limit = _number(read(folder / ("memory.max" if v2 else "memory.limit_in_bytes")))
    return None if limit is None or limit >= _UNLIMITED_V1 else limit


# --------------------------------------------------------------------------------------------------------------- facts


def _machine_memory(root: Path) -> int:
    for line in read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    import psutil

    return int(psutil.virtual_memory().total)


def _slurm_memory(environment: Mapping[str, str]) -> int | None:
    """Slurm counts in MiB; 0 means all of the node."""
    if "SLURM_JOB_ID" not in environment:
        return None
    per_node = _number(environment.get("SLURM_MEM_PER_NODE", ""))
    if per_node is None:
        per_core, cores = _number(environment.get("SLURM_MEM_PER_CPU", "")), slurm_cpus(environment)
        per_node = None if per_core is None or cores is None else per_core * cores
    return per_node * _MIB if per_node else None


def _position(root: Path, core: int) -> tuple[int, int]:
    """Socket and physical core of a logical core; (0, core) where the system does not say."""
    folder = root / f"sys/devices/system/cpu/cpu{core}/topology"
    socket, physical = _number(read(folder / "physical_package_id")), _number(read(folder / "core_id"))
    return (0, core) if socket is None or physical is None else (socket, physical)


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def read(path: Path) -> str:
    """Content of a file of ``/proc`` or ``/sys``, empty where the system has no such file."""
    try:
        return path.read_text()
    except OSError:
        return ""
