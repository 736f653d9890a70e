"""Which cores each rank of a node works on, and with how many threads.

Cores are divided evenly among the ranks of a node, and each rank is pinned to its part, so that neighbours do not chase
each other from core to core. A launcher that has bound the ranks already (their masks differ) is left in charge.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from distune.distributed.transport import WorkerInfo

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by OpenMP (torch too), OpenBLAS (numpy) and MKL when they are loaded. ONNX Runtime is told by each session."""


@dataclass(frozen=True)
class Placement:
    """Where one rank works.

    Attributes:
        cores: To be pinned to; empty where its mask stays as it is.
        threads: Threads that OpenMP and BLAS libraries may use.
    """

    cores: tuple[int, ...] = ()
    threads: int = 1


def place(workers: Iterable[WorkerInfo], timed_threads: int = 1) -> tuple[dict[int, Placement], tuple[str, ...]]:
    """Divide each node's cores among its ranks.

    Args:
        workers: Those that have said what they may use; of the others nothing is known and nothing changed.
        timed_threads: Threads of the sessions that are timed. No rank gets fewer cores: neighbours hold still
            meanwhile, so their cores may be lent.

    Returns:
        Placement by rank, and what the user should know, with the numbers to use instead.
    """
    hosts: dict[str, list[WorkerInfo]] = {}
    for worker in workers:
        if worker.resources is not None:
            hosts.setdefault(worker.host, []).append(worker)
    placements: dict[int, Placement] = {}
    warnings: list[str] = []
    for host, ranks in hosts.items():
        placements |= _on_host(ranks, timed_threads)
        warnings += _warnings(host, ranks, timed_threads)
    return placements, tuple(warnings)


def settle(placement: Placement) -> Callable[[], None]:
    """Pin this thread, and what it starts from here on, and set the thread variables that the user has not set.

    Pinned by ``sched_setaffinity`` of the calling thread: a child inherits the mask of the thread that starts it.

    Returns:
        Puts everything back as it was.
    """
    mask = os.sched_getaffinity(0) if placement.cores and hasattr(os, "sched_setaffinity") else None
    if mask is not None:
        os.sched_setaffinity(0, placement.cores)
    added = [name for name in THREAD_VARIABLES if name not in os.environ]
    for name in added:
        os.environ[name] = str(placement.threads)
    torch = sys.modules.get("torch")  # it has read the variables already; matters to `isolation: none` alone
    threads = torch.get_num_threads() if torch is not None else 0
    if torch is not None and added:
        torch.set_num_threads(placement.threads)

    def undo() -> None:
        if mask is not None:
            os.sched_setaffinity(0, mask)
        for name in added:
            os.environ.pop(name, None)
        if torch is not None and added:
            torch.set_num_threads(threads)

    return undo


def _on_host(ranks: Sequence[WorkerInfo], timed_threads: int) -> dict[int, Placement]:
    cores, usable = _together(ranks)
    threads = max(1, int(usable / len(ranks)))
    if _bound(ranks) or len(ranks) == 1 or len(ranks) > len(cores):
        masks = {worker.rank: worker.resources.cores for worker in ranks if worker.resources is not None}
        return {rank: Placement((), max(1, min(threads, len(mask) or threads))) for rank, mask in masks.items()}
    placements: dict[int, Placement] = {}
    for index, worker in enumerate(sorted(ranks, key=lambda worker: worker.local_rank)):
        start, end = (len(cores) * which // len(ranks) for which in (index, index + 1))
        wanted = min(max(end - start, timed_threads), len(cores))
        block = tuple(cores[(start + step) % len(cores)] for step in range(wanted))
        placements[worker.rank] = Placement(block, threads)
    return placements


def _warnings(host: str, ranks: Sequence[WorkerInfo], timed_threads: int) -> list[str]:
    usable = _together(ranks)[1]
    fitting = max(1, int(usable))
    found: list[str] = []
    if len(ranks) > fitting:
        found.append(
            f"{host}: {len(ranks)} ranks share {usable:g} usable cores; {fitting} there would be as fast "
            "(--np, slots of the hostfile, --ntasks-per-node)"
        )
    if timed_threads > fitting:
        found.append(
            f"{host}: latency is measured with {timed_threads} threads on {usable:g} usable cores, which tells little; "
            f"set cores_per_instance to {fitting} or less"
        )
    elif _bound(ranks) and any(0 < len(w.resources.cores) < timed_threads for w in ranks if w.resources is not None):
        found.append(
            f"{host}: latency is measured with {timed_threads} threads, but the launcher has bound ranks to fewer "
            "cores; start it with --bind-to none (srun: --cpu-bind=none)"
        )
    return found


def _together(ranks: Sequence[WorkerInfo]) -> tuple[tuple[int, ...], float]:
    """All cores that the ranks of a node have between them, and how many of these may be kept busy."""
    all_resources = [worker.resources for worker in ranks if worker.resources is not None]
    cores = tuple(dict.fromkeys(core for resources in all_resources for core in resources.cores))
    limits = [resources.cpu_limit for resources in all_resources if resources.cpu_limit is not None]
    return cores, min([float(len(cores)) if cores else all_resources[0].usable_cores, *limits])


def _bound(ranks: Sequence[WorkerInfo]) -> bool:
    """Whether a launcher has given the ranks masks of their own."""
    return len({frozenset(worker.resources.cores) for worker in ranks if worker.resources is not None}) > 1
