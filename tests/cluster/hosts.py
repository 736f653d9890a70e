"""Two hosts on this machine: namespaces for network, host name and mounts, with a cable between them and sshd in each.

They share the installed programs and nothing else: what is in ``private`` folders, and ``/dev/shm``, is
each host's own. The namespaces are those of the sshd processes and end with them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.daemons import Daemons, until

NAMES = ("a", "b")
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_PROGRAMS = ("ip", "nsenter", "sshd", "ssh", "ssh-keygen", "unshare")


def lacking() -> str:
    """Why there cannot be hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (.ci/run installs them)"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Hosts:
    """Hosts ``a`` and ``b``. ``stop`` ends them.

    Args:
        folder: Everything that they write is below it.
        private: Folders that host ``b`` sees as empty.
    """

    def __init__(self, folder: Path, private: Sequence[Path]) -> None:
        self.folder = folder
        self._daemons = Daemons(folder)
        self._private = private
        self.pids: dict[str, int] = {}
        self._write_files()
        try:
            for name in NAMES:
                self._start(name)
            self._connect()
        except BaseException:
            self.stop()
            raise

    def command(self, host: str, *words: str) -> list[str]:
        """The command line that runs ``words`` on a host."""
        return ["nsenter", f"--target={self.pids[host]}", "--net", "--uts", "--mount", "--wd=/", *words]

    @property
    def environment(self) -> dict[str, str]:
        """For ``mpirun``: how its ssh reaches the other host."""
        return {"PATH": _PATH, "PRTE_MCA_plm_ssh_agent": f"ssh -F {self.folder}/ssh_config"}

    def cut(self) -> None:
        """Pull the cable out of host ``b``."""
        subprocess.run(
            ["nsenter", f"--target={self.pids['b']}", "--net", "ip", "link", "set", "eth0", "down"], check=True
        )

    def processes(self, host: str) -> list[int]:
        """Process ids on a host, its sshd's own not counted."""
        namespace = os.readlink(f"/proc/{self.pids[host]}/ns/net")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                here = os.readlink(folder / "ns/net") == namespace
            except OSError:
                continue
            if here and int(folder.name) != self.pids[host]:
                found.append(int(folder.name))
        return found

    def stop(self) -> None:
        """End everything on both hosts, then the hosts."""
        for host in self.pids:
            for pid in self.processes(host):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
        self._daemons.stop()

    def _write_files(self) -> None:
        for name in ("host_key", "key"):
            path = self.folder / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        )
        (self.folder / "ssh_config").write_text(
            f"Host *\n IdentityFile {self.folder}/key\n IdentitiesOnly yes\n StrictHostKeyChecking no\n"
            " UserKnownHostsFile /dev/null\n LogLevel ERROR\n ServerAliveInterval 5\n"
        )
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/key.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPidFile none\nClientAliveInterval 5\nAcceptEnv *\n"
        )

    def _start(self, name: str) -> None:
        mounts = ["mount -t tmpfs none /dev/shm", "mount -t tmpfs none /run", "mkdir /run/sshd"]
        mounts += [f"mount --bind {self.folder}/hosts /etc/hosts"]
        if name == "b":
            mounts += [f"mount -t tmpfs none '{folder}'" for folder in self._private]
        script = " && ".join(
            [
                f"hostname {name}",
                *mounts,
                "ip link set lo up",
                f"exec /usr/sbin/sshd -D -e -f {self.folder}/sshd_config",
            ]
        )
        command = ["unshare", "--net", "--uts", "--mount", "--propagation=private", "sh", "-c", script]
        self.pids[name] = self._daemons.start(f"sshd-{name}", command, {**os.environ, "PATH": _PATH})
        own = os.readlink("/proc/self/ns/mnt")
        until(
            lambda: (
                os.readlink(f"/proc/{self.pids[name]}/ns/mnt") != own
                and "listening" in self._daemons.log(f"sshd-{name}")
            ),
            lambda: self._daemons.log(f"sshd-{name}"),
        )

    def _connect(self) -> None:
        ends = [word for name in NAMES for word in ("name", "eth0", "netns", str(self.pids[name]))]
        link = ["ip", "link", "add", *ends[:4], "type", "veth", "peer", *ends[4:]]
        subprocess.run(link, check=True, env={**os.environ, "PATH": _PATH})
        for name, address in ADDRESSES.items():
            for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                subprocess.run(self.command(name, "ip", *words), check=True)
        until(
            lambda: (
                not subprocess.run(
                    self.command("a", "ssh", "-F", f"{self.folder}/ssh_config", "b", "true"),
                    check=False,
                    capture_output=True,
                ).returncode
            ),
            lambda: self._daemons.log("sshd-b"),
            30,
        )
