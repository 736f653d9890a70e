"""``mpirun --host a,b`` over ssh without a shared folder, and a cable that is pulled in mid-run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distune.distributed.launcher import launcher_environment, mpirun_command
from distune.journal.journal import read_records
from distune.report.result import RunResult
from tests.cli.jobs import ROOT
from tests.cluster.daemons import until
from tests.cluster.hosts import Hosts, lacking
from tests.distributed.mpirun import LAUNCHER

pytestmark = [
    pytest.mark.full,
    pytest.mark.mpi,
    pytest.mark.timeout(280),
    pytest.mark.skipif(LAUNCHER is None or LAUNCHER.vendor != "openmpi", reason="needs mpi4py and Open MPI"),
]

SOON = {f"PRTE_MCA_oob_tcp_keepalive_{name}": value for name, value in (("time", "3"), ("intvl", "1"), ("probes", "3"))}
"""So that a pulled cable is noticed in seconds."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The embedded example in a folder that only host a has."""
    folder = tmp_path / "job"
    shutil.copytree(ROOT / "launch" / "examples", folder)
    return folder


@pytest.fixture
def hosts(tmp_path: Path, job: Path) -> Iterator[Hosts]:
    if reason := lacking():
        pytest.skip(reason)
    folder = tmp_path / "hosts"
    folder.mkdir()
    running = Hosts(folder, [job])
    yield running
    running.stop()


def start(hosts: Hosts, folder: Path, *arguments: str, where: str) -> subprocess.Popen[bytes]:
    """``distune`` on host a, as ranks on the hosts of ``where``."""
    assert LAUNCHER is not None
    *mpirun, count, number = mpirun_command(4, [], LAUNCHER)
    words = [*mpirun, "--host", where, "-x", "PYTHONPATH", count, number, sys.executable, "-m", "distune", *arguments]
    environment = launcher_environment({**os.environ, **hosts.environment, **SOON, "PYTHONPATH": str(ROOT)})
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            hosts.command("a", *words), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def said(folder: Path) -> str:
    return (folder / "output").read_text(errors="replace")


def ours(hosts: Hosts) -> list[str]:
    """Ranks and children on both hosts; what else is there belongs to ssh and mpirun."""
    found = []
    for host in ("a", "b"):
        for pid in hosts.processes(host):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if sys.executable in command.split(" ")[0]:
                found.append(f"{host}: {command}")
    return found


def judged(workspace: Path) -> dict[str, int]:
    """The rank that judged, by what was judged, in the order of the journal."""
    path = workspace / "journal.jsonl"
    records = read_records(path) if path.exists() else []
    return {
        record.data["key"]: record.data["meta"]["rank"]
        for record in records
        if record.kind == "result" and record.data["key"].startswith("judge:")
    }


def times_judged(workspace: Path) -> int:
    """Judgings in the journal, repeated ones too."""
    records = read_records(workspace / "journal.jsonl")
    return sum(record.kind == "result" and record.data["key"].startswith("judge:") for record in records)


def test_doctor_reaches_every_rank_on_both_hosts(hosts: Hosts, tmp_path: Path) -> None:
    assert start(hosts, tmp_path, "doctor", where="a:2,b:2").wait(120) == 0, said(tmp_path)
    assert "2 on a, 2 on b" in said(tmp_path)
    assert "4 of 4 ranks ran the trial: all well" in said(tmp_path)


def test_a_run_whose_cable_is_pulled_ends_at_once_and_resumes_without_that_host(
    hosts: Hosts, job: Path, tmp_path: Path
) -> None:
    """No ``mpirun`` of Open MPI 5.0 goes on without one of its nodes, with ULFM or not."""
    workspace = tmp_path / "workspace"
    run = ("run", str(job / "digits.yaml"), "--workspace", str(workspace), "--quiet")
    process = start(hosts, tmp_path, *run, where="a:2,b:2")

    def well_under_way() -> bool:
        assert process.poll() is None, said(tmp_path)
        return len(judged(workspace)) >= 4 and max(judged(workspace).values()) >= 2  # a rank of host b is one of them

    until(well_under_way, lambda: said(tmp_path), 120)
    assert not list((tmp_path / "hosts").glob("*.onnx"))
    hosts.cut()
    process.wait(60)
    until(lambda: not ours(hosts), lambda: f"outlived by {ours(hosts)}", 30)
    before = judged(workspace)
    # The rest of the tuning is another test's; a few trials more show that it goes on.
    budget = ("--set", f"tuning.exit_policy.max_trials={len(before) + 2}")
    assert start(hosts, tmp_path, *run, *budget, where="a:4").wait(200) in (0, 4), said(tmp_path)
    after = judged(workspace)
    assert list(after)[: len(before)] == list(before)
    assert len(after) == times_judged(workspace), "nothing that was finished is judged again"
    result = RunResult.from_json((workspace / "result.json").read_text())
    assert result.outcome in ("met", "budget_spent")
    assert {host.name for host in result.hosts} == {"a"}
