"""What killed MPI jobs leave behind is named; what living ones use is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distune.distributed.launcher import launcher_environment, mpirun_command
from distune.distributed.leftovers import leftovers
from tests.distributed.mpirun import LAUNCHER, needs_mpirun


def test_segments_that_a_process_has_mapped_belong_to_a_living_job(tmp_path: Path) -> None:
    for folder in ("dev/shm", "tmp/ompi.17", "tmp/ompi.18", "tmp/other.19", "proc/17"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("sm_segment.vm.0.ab.0", "sm_segment.vm.0.cd.1", "mpich_shm_1", "vader_segment.vm.0.1", "mine"):
        (tmp_path / "dev/shm" / name).write_bytes(b"x" * 10)
    (tmp_path / "proc/17/maps").write_text(
        "7f-80 rw-s 0 00:1b 398   /dev/shm/sm_segment.vm.0.ab.0\n7f-80 r-xp 0 0 /bin/sh\n"
    )
    found = leftovers(tmp_path)
    names = [left.path.name for left in found]
    assert names == ["mpich_shm_1", "sm_segment.vm.0.cd.1", "vader_segment.vm.0.1", "ompi.18"]
    assert [left.bytes for left in found] == [10, 10, 10, 0]


@needs_mpirun
@pytest.mark.mpi
@pytest.mark.skipif(LAUNCHER is None or LAUNCHER.vendor != "openmpi", reason="is about Open MPI's own segments")
def test_the_segments_of_a_killed_open_mpi_job_are_found() -> None:
    program = "from mpi4py import MPI; MPI.COMM_WORLD.Barrier(); print('up', flush=True); import time; time.sleep(100)"
    command = mpirun_command(2, [sys.executable, "-c", program], LAUNCHER)
    before = {left.path for left in leftovers()}
    with subprocess.Popen(command, env=launcher_environment(os.environ), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert process.stdout.readline() == "up\n"
        ranks = psutil.Process(process.pid).children(recursive=True)
        pids = {str(rank.pid) for rank in ranks}
        used = {
            Path(line.split()[-1])
            for pid in pids
            for line in Path("/proc", pid, "maps").read_text().splitlines()
            if "/dev/shm/sm_segment" in line
        }
        assert used
        assert not used & {left.path for left in leftovers()}
        for each in (process, *ranks):
            each.send_signal(signal.SIGKILL)
        psutil.wait_procs(ranks, timeout=20)
        process.wait(20)
    found = {left.path for left in leftovers()} - before
    for path in (*used, Path(f"/tmp/ompi.{process.pid}")):
        assert path in found
        subprocess.run(["rm", "-r", path], check=True)
