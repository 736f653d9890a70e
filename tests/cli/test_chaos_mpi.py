"""Chaos under a real ``mpirun --with-ft ulfm``: the embedded example comes out as it does undisturbed.

``DISTUNE_CHAOS_MPI_RUNS`` says how many seeds (3 without it).
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distune.cli.main import main
from distune.distributed.launcher import launcher_environment, mpirun_command
from distune.journal.journal import read_records
from distune.report.result import RunResult
from tests.cli.jobs import ROOT, Job, start
from tests.cli.same import assert_same
from tests.distributed.mpirun import LAUNCHER, needs_mpirun, needs_ulfm

RUNS = int(os.environ.get("DISTUNE_CHAOS_MPI_RUNS", "3"))
RANKS = 4
SECONDS = 400

pytestmark = [needs_mpirun, needs_ulfm, pytest.mark.mpi, pytest.mark.full, pytest.mark.timeout(SECONDS * (RUNS + 2))]

DIGITS = ROOT / "launch" / "examples" / "digits.yaml"

SETTINGS = ("tuning.objective=modelsize", "tuning.latency.iteration=5", "tuning.limits.deadline=30")
"""Decisions by measured latency are the clock's, and not in question here; and what hangs is to be given up soon."""


def arguments(workspace: Path) -> list[str]:
    return [
        "run",
        str(DIGITS),
        "--workspace",
        str(workspace),
        "--quiet",
        *(word for setting in SETTINGS for word in ("--set", setting)),
    ]


def processes(mark: str) -> Iterator[psutil.Process]:
    """All that were started with that mark in their environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("DISTUNE_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of one process."""
    path = tmp_path_factory.mktemp("undisturbed")
    assert main(arguments(path)) == 0
    return path


def test_chaos_changes_nothing_but_the_time(tmp_path: Path, undisturbed: Path) -> None:
    command = mpirun_command(RANKS, Job(tmp_path, {}).command()[:3], LAUNCHER)
    lost: Counter[int] = Counter()
    again = 0
    for seed in range(RUNS):
        workspace, temporary, mark = tmp_path / f"{seed}", tmp_path / f"tmp{seed}", uuid.uuid4().hex
        temporary.mkdir()
        environment = {
            **launcher_environment({}),
            "DISTUNE_CHAOS": f"crash:0.1,hang:0.05,kill_rank:0.02,slow:0.1,seed:{seed}",
            "DISTUNE_TEST_MARK": mark,
            "TMPDIR": str(temporary),
        }
        done = start([*command, *arguments(workspace)], seconds=SECONDS, **environment)
        assert done.returncode == 0, f"seed {seed}: {done.returncode}\n{done.stderr}"
        assert_same(undisturbed, workspace)
        result = RunResult.from_json((workspace / "result.json").read_text())
        assert result.quarantined == ()
        keys = [record.data["key"] for record in read_records(workspace / "journal.jsonl") if record.kind == "result"]
        assert len(keys) == len(set(keys))
        assert psutil.wait_procs(list(processes(mark)), timeout=10)[1] == [], f"seed {seed}: orphans"
        assert not list(Path("/dev/shm").glob("*distune*"))
        assert not [path for path in temporary.iterdir() if path.name.startswith("distune")]
        lost[len(result.lost_ranks)] += 1
        again += sum(trial.attempts > 1 for trial in result.trials)
        print(f"seed {seed}: {result.timing.total_s:.0f} s, lost {result.lost_ranks}", flush=True)
    print(f"{RUNS} runs, ranks lost: {dict(lost)}, trials that took several attempts: {again}")
    assert again
