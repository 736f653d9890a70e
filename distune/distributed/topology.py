"""Facts about the node a process runs on, and whether an MPI launcher started it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from distune.distributed.resources import own_resources, read
from distune.distributed.transport import WorkerInfo

_LAUNCHER_VARIABLES = (
    "OMPI_COMM_WORLD_SIZE",  # Open MPI's mpirun
    "PMIX_RANK",  # Open MPI's mpirun, srun --mpi=pmix
    "PMI_RANK",  # MPICH, Intel MPI, srun --mpi=pmi2
    "PMI_ID",
)
"""Set by a launcher for each rank. ``SLURM_*`` is not among them: a batch script has those without any MPI."""

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PMI_ID")

_QUANTIZATION_ISA = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",  # Arm: dot product
    "i8mm",  # Arm: int8 matrix multiply
    "bf16",
    "sve",
)
"""Flags of ``/proc/cpuinfo`` that decide which quantized kernels run."""


def launched_by_mpi(environment: Mapping[str, str] | None = None) -> bool:
    """True where a launcher (mpirun, mpiexec, srun with PMI) started this process as one of its ranks."""
    variables = os.environ if environment is None else environment
    return any(name in variables for name in _LAUNCHER_VARIABLES)


def launched_rank(environment: Mapping[str, str] | None = None) -> int:
    """The rank that a launcher gave this process, known before ``MPI_Init``; 0 where none did or it does not say."""
    variables = os.environ if environment is None else environment
    given = (variables.get(name, "") for name in _RANK_VARIABLES)
    return next((int(rank) for rank in given if rank.isdigit()), 0)


def host_name() -> str:
    """Name of this node. ``DISTUNE_HOSTNAME`` overrides it, e.g. where containers share a host name."""
    return os.environ.get("DISTUNE_HOSTNAME") or socket.gethostname()


def worker_info(rank: int, local_rank: int = 0) -> WorkerInfo:
    """What this process knows of itself as worker ``rank``."""
    model, isa = _processor()
    return WorkerInfo(rank, host_name(), local_rank, model, isa, own_resources())


def _processor() -> tuple[str, tuple[str, ...]]:
    """Model name and flags that matter, of the first processor (nodes with unlike sockets do not exist in practice)."""
    model, flags = "", set[str]()
    for line in read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        key = key.strip()
        if key == "model name":
            model = value.strip()
        elif key in ("flags", "Features"):
            flags = set(value.split())
        elif not key and flags:
            break
    return model, tuple(flag for flag in _QUANTIZATION_ISA if flag in flags)
