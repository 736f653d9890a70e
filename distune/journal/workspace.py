"""The folder of a run: its paths, and the lock that keeps a second run out of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from distune.errors import WorkspaceError
from distune.journal.files import fsync_directory, replace_folder, workspace_error, write_file

_CLOCK_SLACK_S = 2.0
"""Process start times of one process may differ by this much when the system clock is adjusted."""


@dataclass(frozen=True)
class Owner:
    """Who holds a workspace.

    Attributes:
        host: Node name.
        pid: Its process.
        started: When that process began, seconds since the epoch: tells it from a later process with the same id.
        slurm_job: ``SLURM_JOB_ID``, empty outside Slurm.
        slurm_restart: How often Slurm has requeued that job.
    """

    host: str
    pid: int
    started: float
    slurm_job: str = ""
    slurm_restart: int = 0

    @classmethod
    def of_this_process(cls) -> Owner:
        """The running process."""
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            socket.gethostname(),
            os.getpid(),
            psutil.Process().create_time(),
            os.environ.get("SLURM_JOB_ID", ""),
            int(restart) if restart.isdigit() else 0,
        )

    def is_gone_for(self, other: Owner) -> bool:
        """True where ``other`` can be sure that this owner runs no more."""
        if self.slurm_job and self.slurm_job == other.slurm_job and self.slurm_restart < other.slurm_restart:
            return True  # Slurm starts a requeued job only after every process of the earlier start has ended
        if self.host != other.host:
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _CLOCK_SLACK_S
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


class Workspace:
    """The folder of one run, held for writing. Made by ``Workspace.open``; a context manager that lets go of it.

    Attributes:
        path: The folder.
        warnings: What the user should know of the opening, e.g. that a dead run's lock was taken over.
    """

    def __init__(self, path: Path, warnings: tuple[str, ...] = ()) -> None:
        self.path = path
        self.warnings = warnings
        self._owner: Owner | None = None

    @classmethod
    def open(cls, path: Path, *, fresh: bool = False) -> Workspace:
        """Make the folder where it is missing, check that it can be written, and lock it.

        Args:
            fresh: Start over: an old journal, result and best model are kept aside as ``journal-<n>.jsonl``,
                ``result-<n>.json`` and ``best-<n>/``.

        Raises:
            WorkspaceError: The folder cannot be made or written, or another run holds it.
        """
        path = path.absolute()
        workspace = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise workspace_error("make the workspace", path, error) from error
        workspace._lock()
        try:
            write_file(path / ".writable", b"distune\n")
            (path / ".writable").unlink()
            workspace.log.mkdir(exist_ok=True)
            workspace.cache.mkdir(exist_ok=True)
            if fresh:
                workspace._set_aside()
        except OSError as error:
            workspace.release()
            raise workspace_error("use the workspace", path, error) from error
        except BaseException:
            workspace.release()
            raise
        return workspace

    @property
    def journal(self) -> Path:
        """The journal."""
        return self.path / "journal.jsonl"

    @property
    def result(self) -> Path:
        """The result file."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """The report for the browser."""
        return self.path / "report.html"

    @property
    def trials_csv(self) -> Path:
        """The judged trials for a spreadsheet."""
        return self.path / "trials.csv"

    @property
    def best(self) -> Path:
        """Folder of the best model and its ``tuning_config.yaml``."""
        return self.path / "best"

    @property
    def log(self) -> Path:
        """Folder of the ranks' logs."""
        return self.path / "log"

    @property
    def cache(self) -> Path:
        """Folder of what can be computed again, e.g. calibration statistics."""
        return self.path / "cache"

    def rank_log(self, rank: int) -> Path:
        """Log file of one rank."""
        return self.log / f"rank-{rank}.log"

    def write_result(self, content: str) -> None:
        """Replace ``result.json`` atomically.

        Raises:
            WorkspaceError: It cannot be written.
        """
        write_file(self.result, content)

    def write_best(self, files: Mapping[str, bytes | str]) -> None:
        """Replace the folder ``best/`` as a whole by ``files`` (content by name).

        Raises:
            WorkspaceError: It cannot be written; the earlier best model is still there.
        """
        replace_folder(self.best, files)

    def release(self) -> None:
        """Let go of the lock, if it is still ours. May be called twice."""
        if self._owner is not None and _read_owner(self._lock_path) == self._owner:
            with suppress(FileNotFoundError):
                self._lock_path.unlink()
        self._owner = None

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    @property
    def _lock_path(self) -> Path:
        return self.path / "lock"

    def _lock(self) -> None:
        me = Owner.of_this_process()
        try:
            with _one_at_a_time(self.path):
                if not _create_lock(self._lock_path, me):
                    holder = _read_owner(self._lock_path)
                    if holder is None or not holder.is_gone_for(me):
                        raise WorkspaceError(_refusal(self._lock_path, holder, me))
                    write_file(self._lock_path, _dump(me))
                    self.warnings += (
                        f"{self.path}: the run that held this workspace (process {holder.pid} on {holder.host}) has "
                        f"ended without letting go of it; its lock is taken over",
                    )
        except OSError as error:
            raise workspace_error("lock the workspace", self.path, error) from error
        self._owner = me

    def _set_aside(self) -> None:
        kept = {self.journal: "journal-{}.jsonl", self.result: "result-{}.json", self.best: "best-{}"}
        number = 1
        while any((self.path / name.format(number)).exists() for name in kept.values()):
            number += 1
        for old, name in kept.items():
            if old.exists():
                os.rename(old, self.path / name.format(number))
        fsync_directory(self.path)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two runs of this host that find the same dead lock take it over one after the other, so that one is refused."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # network file systems may not lock folders; creating the lock file is atomic anyway
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create_lock(path: Path, owner: Owner) -> bool:
    """Make the lock file, complete from its first moment; False where there is one already."""
    draft = path.with_name(f".lock.{owner.host}.{owner.pid}.tmp")
    write_file(draft, _dump(owner))
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return _create_without_links(path, owner)
    finally:
        draft.unlink()
    fsync_directory(path.parent)
    return True


def _create_without_links(path: Path, owner: Owner) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, _dump(owner).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _dump(owner: Owner) -> str:
    return json.dumps(asdict(owner)) + "\n"


def _read_owner(path: Path) -> Owner | None:
    """The owner in a lock file; ``None`` where the file is gone or is not one of ours."""
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        return Owner(**data)
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _refusal(path: Path, holder: Owner | None, me: Owner) -> str:
    if holder is None:
        return (
            f"the workspace {path.parent} is locked, and its lock file does not say by whom; if no run uses it, remove "
            f"the lock with: rm {path}"
        )
    if holder.host == me.host:
        return (
            f"the workspace {path.parent} is in use by process {holder.pid} on this host; wait for that run, end it, "
            f"or name another folder with --workspace"
        )
    return (
        f"the workspace {path.parent} is in use by process {holder.pid} on host {holder.host}, which cannot be checked "
        f"from {me.host}; if that run is no more, remove its lock with: rm {path}"
    )
