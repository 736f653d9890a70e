"""How much memory the trials of each rank may take."""

from __future__ import annotations

from collections.abc import Iterable

from distune.distributed.transport import WorkerInfo

_SHARE = 0.9
"""Of a node's memory for trials; the rest is for the ranks themselves and the system."""


def memory_limits(workers: Iterable[WorkerInfo], given: int | None = None) -> dict[int, int | None]:
    """Bytes that the child process of each rank may keep resident, by rank.

    Args:
        workers: All of the run: those of one node share its memory.
        given: What the user has set for each rank.

    Returns:
        ``given``, else an even share of what cgroup, Slurm or the machine allow the node's ranks together; ``None``
        (no limit) where a rank has not said what that is.
    """
    hosts: dict[str, list[WorkerInfo]] = {}
    for worker in workers:
        hosts.setdefault(worker.host, []).append(worker)
    limits: dict[int, int | None] = {}
    for ranks in hosts.values():
        allowed = [worker.resources.memory_bytes for worker in ranks if worker.resources is not None]
        share = int(min(allowed) * _SHARE / len(ranks)) if allowed else None
        limits |= {worker.rank: given if given is not None else share for worker in ranks}
    return limits
