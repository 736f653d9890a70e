"""Settings of the process that are no part of a config: seed, workspace, what to resume, TensorBoard."""

from __future__ import annotations

import os
import time
from pathlib import Path

from distune.config.diagnostics import describe
from distune.errors import UsageError

DEFAULT_FOLDER = "nc_workspace"


class Options:
    """The settings of ``distune.config.options``. Change them with the setters, which check what they are given.

    Attributes:
        random_seed: Seed of everything random.
        workspace: Folder of the runs' files; empty means ``./nc_workspace/<time>`` with one folder for each ``fit``.
        resume_from: Workspace of an earlier run that the next ``fit`` goes on with; empty for none.
        tensorboard: Whether events for TensorBoard are asked for.
    """

    def __init__(self) -> None:
        self.random_seed = 1978
        self.workspace = ""
        self.resume_from = ""
        self.tensorboard = False
        self._uses: dict[str, int] = {}

    def set_random_seed(self, random_seed: int) -> None:
        """Set the seed of everything random: a whole number from 0 to 2**32 - 1.

        Raises:
            UsageError: It is something else.
        """
        plain = random_seed.item() if hasattr(random_seed, "item") else random_seed
        if isinstance(plain, bool) or not isinstance(plain, int) or not 0 <= plain < 2**32:
            raise UsageError(f"set_random_seed: expected a whole number from 0 to 2**32 - 1, got {describe(plain)}")
        self.random_seed = plain

    def set_workspace(self, workspace: str | os.PathLike[str]) -> None:
        """Set the folder of the runs' files. The same script run again goes on where its journal ends.

        Raises:
            UsageError: It is no path.
        """
        self.workspace = _path(workspace, "set_workspace")

    def set_resume_from(self, resume_from: str | os.PathLike[str]) -> None:
        """Let the next ``fit`` go on with the run of that workspace.

        Raises:
            UsageError: There is no journal in it.
        """
        path = _path(resume_from, "set_resume_from")
        if not Path(path, "journal.jsonl").is_file():
            raise UsageError(f"set_resume_from: there is no journal.jsonl in {path}: no run of distune was there")
        self.resume_from = path

    def set_tensorboard(self, tensorboard: bool) -> None:
        """Ask for events for TensorBoard.

        Raises:
            UsageError: It is neither True nor False.
        """
        if not isinstance(tensorboard, bool):
            raise UsageError(f"set_tensorboard: expected true or false, got {describe(tensorboard)}")
        self.tensorboard = tensorboard

    def next_workspace(self) -> Path:
        """The absolute folder of the next ``fit`` of this process.

        Later calls in the same folder get ``fit-2``, ``fit-3``, ... in it: which call gets which does not change from
        one start of a script to the next, so that each of its runs resumes.
        """
        if self.resume_from:
            path, self.resume_from = self.resume_from, ""
            return Path(path)
        if not self.workspace:
            return _unused(Path(DEFAULT_FOLDER).absolute() / time.strftime("%Y-%m-%d_%H-%M-%S"))
        number = self._uses[self.workspace] = self._uses.get(self.workspace, 0) + 1
        return Path(self.workspace) if number == 1 else Path(self.workspace, f"fit-{number}")


def _path(value: object, what: str) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UsageError(f"{what}: expected a path, got {describe(value)}")
    return os.path.abspath(os.path.expanduser(os.fsdecode(value)))


def _unused(path: Path) -> Path:
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


options = Options()
"""The settings of this process."""

set_random_seed = options.set_random_seed
set_workspace = options.set_workspace
set_resume_from = options.set_resume_from
set_tensorboard = options.set_tensorboard
