"""A cluster for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import slurm as slurm_cluster
from tests.distributed.mpirun import LAUNCHER


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Slurm]:
    """A running Slurm of two nodes; skips where there cannot be one."""
    lacking = slurm_cluster.lacking() or ("" if LAUNCHER is not None else "needs mpi4py and an mpirun")
    if lacking:
        pytest.skip(lacking)
    folder: Path = tmp_path_factory.mktemp("slurm")
    cluster = slurm_cluster.Slurm(folder)
    yield cluster
    cluster.stop()
