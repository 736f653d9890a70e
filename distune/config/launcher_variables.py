"""What an MPI launcher puts into the environment of its ranks, and how to leave it out."""

from __future__ import annotations

from collections.abc import Mapping

LAUNCHER_PREFIXES = (
    "OMPI_",
    "PMIX_",
    "PRTE_",
    "PMI_",
    "PMI2_",
    "HYDRA_",
    "HYDI_",
    "MPI_LOCAL",  # MPICH: MPI_LOCALRANKID, MPI_LOCALNRANKS; a user's own MPI_HOME stays
    "DISTUNE_LAUNCHER_",  # of `run --np`
)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` for a process that is no rank: one that looks like a rank may take the real ranks with it."""
    return {name: value for name, value in environment.items() if not name.startswith(LAUNCHER_PREFIXES)}
