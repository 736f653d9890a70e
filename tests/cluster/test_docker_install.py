"""``docker/install distune`` and ``docker/entrypoint`` outside a container, with Debian's own Open MPI."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distune.distributed.launcher import launcher_environment
from tests.cli.jobs import ROOT
from tests.cluster.daemons import Daemons, until

pytestmark = [pytest.mark.full, pytest.mark.mpi, pytest.mark.timeout(600)]

SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of this checkout that git knows, and no ``.venv``."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / "distune" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "distune" / name)
    return tmp_path / "distune"


def test_the_install_script_makes_a_distune_that_runs_on_debians_open_mpi(checkout: Path) -> None:
    if not Path("/usr/bin/mpirun").exists():
        pytest.skip("Debian's openmpi-bin is not installed (.ci/run installs it)")
    plain = {name: value for name, value in os.environ.items() if name in ("HOME", "PIP_INDEX_URL", "PIP_FIND_LINKS")}
    plain |= {"PATH": f"{sys.base_prefix}/bin:{SYSTEM}"}  # not the environment of the tests, which has an mpirun too
    done = subprocess.run(
        [checkout / "docker" / "install", "distune"], env=plain, capture_output=True, text=True, timeout=450
    )
    assert done.returncode == 0, done.stderr
    assert "mpirun         /usr/bin/mpirun" in done.stdout
    assert "MPI            Open MPI v4" in done.stdout
    command = ["/usr/bin/mpirun", "--bind-to", "none", "--oversubscribe", "-np", "2"]
    ranks = subprocess.run(
        [*command, checkout / ".venv" / "bin" / "python", "-m", "distune", "doctor"],
        env=launcher_environment(plain),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ranks.returncode == 0, ranks.stderr
    assert "2 of 2 ranks ran the trial: all well" in ranks.stdout


@pytest.fixture
def port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        number: int = held.getsockname()[1]
    return number


def test_the_entrypoint_makes_a_host_that_its_own_ssh_reaches(tmp_path: Path, port: int) -> None:
    if shutil.which("sshd", path=SYSTEM) is None:
        pytest.skip("openssh-server is not installed (.ci/run installs it)")
    keys, home = tmp_path / "keys", tmp_path / "home"
    keys.mkdir(mode=0o700)
    home.mkdir()
    environment = {
        "PATH": f"/marked:{SYSTEM}",
        "HOME": str(home),
        "DISTUNE_KEYS": str(keys),
        "DISTUNE_SSH_PORT": str(port),
    }
    entry = [str(ROOT / "docker" / "entrypoint")]
    if os.geteuid() == 0:  # in the container it is an ordinary user's; root's sshd wants a folder in /run
        script = 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$0"'
        entry = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, *entry]
    daemons = Daemons(tmp_path)
    try:
        daemons.start("entrypoint", entry, environment)
        until(lambda: "Server listening" in daemons.log("entrypoint"), lambda: daemons.log("entrypoint"), 30)
        config = home / ".ssh" / "config"
        ask = ["ssh", "-F", str(config), "127.0.0.1", "echo $PATH"]
        said = subprocess.run(ask, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert "/marked:" in said.stdout, said.stderr + daemons.log("entrypoint")
        assert oct((keys / "id_ed25519").stat().st_mode & 0o777) == "0o600"
    finally:
        daemons.stop()
