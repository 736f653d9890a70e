"""The batch script of a run under Slurm: its resources, how its ranks are started, and how it goes on.

Slurm sends USR1 to the batch shell a while before the time is up (``--signal=B:USR1@...``). The shell hands it to the
launcher, the run ends in order with 75, and the job puts itself back into the queue, where it resumes from its journal.
A job whose node failed or that was preempted is put back by Slurm itself (``--requeue``) and resumes the same way.
TERM asks for the same orderly end but not for another turn: who cancels a job does not want it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Launcher = Literal["np", "srun", "mpirun"]

MARK = "# Written by distune; see: python -m distune slurm --help"
"""Second line of every script, by which one is known that may be overwritten."""

_WAIT = """\
warned="" signalled=""
hand_on() {
    signalled=yes
    [[ -z "${run:-}" ]] || kill -USR1 "$run" 2>/dev/null || true
}
trap 'warned=yes; hand_on' USR1 # the time is nearly up
trap hand_on TERM               # somebody wants it to end

"${command[@]}" &
run=$!
[[ -z "$signalled" ]] || hand_on
code=""
while [[ -z "$code" || -n "$signalled" ]]; do # a signal ends the waiting, not the run
    signalled=""
    wait "$run" && code=0 || code=$?
done

if [[ "$code" == 75 && -n "$warned" ]]; then
    echo "distune: the time is up; job $SLURM_JOB_ID goes back to the queue and will resume"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(frozen=True)
class BatchScript:
    """What goes into the script.

    Attributes:
        configs: Configuration files as words of the shell; several make an array with one task each. A single word of
            the form ``"$@"`` takes them from the command line of ``sbatch``.
        workspaces: One for each of ``configs``, as words of the shell; they may use ``$config``.
        name: The job's name.
        time: In Slurm's format.
        python: The interpreter, as a word of the shell.
        launcher: ``np``: by ``run --np``, whose exit code is right whatever happens to the ranks (an ``mpirun`` of Open
            MPI that loses a node returns 0); ``srun``: by Slurm's PMIx; ``mpirun``: by ``mpirun`` itself.
        mpirun: The start of the command, for ``mpirun``.
        warn_s: Seconds before the end of the time at which the run is asked to end.
        more: Further options of ``sbatch``, e.g. ``--partition=long``.
        run_options: Further words of ``distune run``.
    """

    configs: Sequence[str]
    workspaces: Sequence[str]
    name: str
    nodes: int
    ntasks_per_node: int
    time: str
    python: str
    launcher: Launcher
    mpirun: Sequence[str] = ()
    warn_s: int = 180
    more: Sequence[str] = ()
    run_options: Sequence[str] = ()

    def text(self) -> str:
        """The script."""
        options = [
            f"--job-name={self.name}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.ntasks_per_node}",
            f"--time={self.time}",
            f"--output=%x-{'%A_%a' if self._is_array else '%j'}.log",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR1@{self.warn_s}",
            *([f"--array=0-{len(self.configs) - 1}"] if len(self.configs) > 1 else []),
            *self.more,
        ]
        head = ["#!/usr/bin/env bash", MARK, *(f"#SBATCH {option}" for option in options), "set -euo pipefail", ""]
        return "\n".join([*head, *self._task(), f"command=({self._command()})", "", _WAIT])

    @property
    def _is_array(self) -> bool:
        return len(self.configs) > 1 or self.configs[0] == '"$@"'

    def _task(self) -> list[str]:
        """Lines that choose configuration and workspace."""
        if not self._is_array:
            return [f"config={self.configs[0]}", f"workspace={self.workspaces[0]}"]
        lines = [f"configs=({' '.join(self.configs)})", 'config="${configs[SLURM_ARRAY_TASK_ID]}"']
        if len(self.workspaces) == 1:
            return [*lines, f"workspace={self.workspaces[0]}"]
        return [*lines, f"workspaces=({' '.join(self.workspaces)})", 'workspace="${workspaces[SLURM_ARRAY_TASK_ID]}"']

    def _command(self) -> str:
        run = [self.python, "-m", "distune", "run", '"$config"', "--workspace", '"$workspace"', *self.run_options]
        start = {
            "np": [],
            "srun": ["srun", "--mpi=pmix", "--cpu-bind=none", "--kill-on-bad-exit=1"],
            "mpirun": [*self.mpirun],
        }[self.launcher]
        return " ".join([*start, *run, *(["--np", '"$SLURM_NTASKS"'] if self.launcher == "np" else [])])
