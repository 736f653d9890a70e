"""A real Slurm on this machine: munged, slurmctld, and one slurmd for each of two simulated nodes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.daemons import Daemons, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
TmpFS={folder}/tmp-%n
SlurmdLogFile={folder}/slurmd-%n.log
KillWait=10
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def lacking() -> str:
    """Why Slurm cannot be run here; empty where it can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"not installed: {', '.join(missing)} (.ci/run installs them)" if missing else ""


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Slurm:
    """The cluster. ``stop`` ends it.

    Args:
        folder: Everything that it writes is below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}
        for name in ("state", "spool-node1", "spool-node2", "tmp-node1", "tmp-node2"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        text = _CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=_free_ports(3))
        (folder / "slurm.conf").write_text(text)
        self._daemons = Daemons(folder)
        try:
            self._start(key)
        except BaseException:
            self.stop()
            raise

    def _start(self, key: Path) -> None:
        start = self._daemons.start
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed", "log-file": "munge.log"}
        options = [f"--{name}={self.folder / path}" for name, path in files.items()]
        start("munged", ["/usr/sbin/munged", "--foreground", "--force", f"--key-file={key}", *options])
        self._await((self.folder / "munge.socket").exists)
        start("slurmctld", ["/usr/sbin/slurmctld", "-D"], self.environment)
        for node in ("node1", "node2"):
            start(f"slurmd-{node}", ["/usr/sbin/slurmd", "-D", "-N", node], self.environment)
        self._await(lambda: self.command("sinfo", "-h", "-o", "%T", "-N", check=False).split() == ["idle", "idle"])

    def _await(self, condition: object) -> None:
        def look() -> bool:
            self._daemons.check()
            return bool(condition())  # type: ignore[operator]

        until(look, lambda: f"Slurm did not come up: {self.logs()}")

    def logs(self) -> str:
        """The last lines of all daemons."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.out")
        )

    def command(self, *words: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            words,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.folder,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def submit(self, script: Path, *options: str) -> str:
        """The id of the job."""
        return self.command("sbatch", "--parsable", *options, str(script)).strip()

    def state(self, job: str) -> str:
        """e.g. ``RUNNING``."""
        found = re.search(r"JobState=(\w+)", self.command("scontrol", "show", "job", job))
        return found[1] if found else ""

    def exit_code(self, job: str) -> int:
        """Of an ended job."""
        found = re.search(r"ExitCode=(\d+):", self.command("scontrol", "show", "job", job))
        assert found is not None
        return int(found[1])

    def await_state(self, job: str, *states: str, seconds: float = 120.0) -> str:
        """Wait until the job is in one of ``states``."""
        until(
            lambda: self.state(job) in states,
            lambda: f"job {job}: {self.command('scontrol', 'show', 'job', job)}\n{self.logs()}",
            seconds,
        )
        return self.state(job)

    def stop(self) -> None:
        """Cancel what still runs and end the daemons."""
        if (self.folder / "state").exists():
            self.command("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        self._daemons.stop()
        for step in self._steps():
            os.kill(step, signal.SIGKILL)

    def _steps(self) -> list[int]:
        """Processes of job steps that have outlived their slurmd."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment, name = (folder / "environ").read_bytes(), (folder / "comm").read_text().strip()
            except OSError:
                continue
            if name == "slurmstepd" and str(self.folder).encode() in environment:
                found.append(int(folder.name))
        return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
