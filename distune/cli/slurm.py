"""Write a batch script for Slurm that resumes when its time is up or its node fails, and submit it."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from distune.cli.slurm_script import MARK, BatchScript, Launcher
from distune.cli.whole import at_least
from distune.errors import UsageError

_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
_NAME = re.compile(r"[^\w.-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configurations, what the job may use, and where the script goes."""
    parser.add_argument(
        "configs", type=Path, nargs="+", metavar="cfg.yaml", help="configuration; several make an array of jobs"
    )
    parser.add_argument("--nodes", type=at_least(1), default=1, metavar="N", help="nodes of each job (default: 1)")
    parser.add_argument("--ntasks-per-node", type=at_least(1), required=True, metavar="N", help="ranks on each node")
    parser.add_argument("--time", type=_time, required=True, metavar="H:MM:SS", help="time limit; may be resumed after")
    parser.add_argument("--workspace", metavar="DIR", help="folder of the run's files (default: ./distune_workspace)")
    parser.add_argument(
        "--launcher",
        choices=("np", "srun", "mpirun"),
        default="np",
        help="who starts the ranks: run --np (default; calls mpirun), srun --mpi=pmix, or mpirun itself",
    )
    parser.add_argument(
        "--warn",
        type=at_least(1),
        default=180,
        metavar="S",
        help="seconds before the end at which it stops (default: 180)",
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="--KEY=VALUE", help="of sbatch, e.g. --option=--partition=long"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="override a key of the configuration"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the script (default: NAME.sbatch)")
    parser.add_argument("--submit", action="store_true", help="call sbatch on it")


def main(arguments: argparse.Namespace) -> int:
    """Check the configurations, write the script and, if asked to, submit it.

    Raises:
        UsageError: A configuration is wrong, the options do not fit each other, or sbatch is not there or refuses.
    """
    if arguments.submit and shutil.which("sbatch") is None:
        raise UsageError("sbatch was not found: --submit needs a machine from which Slurm takes jobs")
    _check(arguments.configs, arguments.set)
    script = _script(arguments)
    path = arguments.output or Path(f"{script.name}.sbatch")
    if path.exists() and MARK not in path.read_text(errors="replace").splitlines()[:2]:
        raise UsageError(f"{path} exists and was not written by distune: choose another file by --output")
    path.write_text(script.text())
    path.chmod(0o755)
    print(f"{path}: {len(arguments.configs)} x {script.nodes * script.ntasks_per_node} ranks, {script.time}")
    if not arguments.submit:
        print(f"submit it with: sbatch {shlex.quote(str(path))}")
        return 0
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"sbatch refused {path}: {done.stderr.strip()}")
    print(done.stdout.strip())
    return 0


def _check(configs: list[Path], overrides: list[str]) -> None:
    """All the errors that would otherwise be found when the job's turn has come."""
    from distune.cli import configuration

    for config in configs:
        configuration.read(argparse.Namespace(config=config, set=overrides)).job()


def _script(arguments: argparse.Namespace) -> BatchScript:
    configs: list[Path] = arguments.configs
    stems = [config.stem for config in configs]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    if twice:
        raise UsageError(f"{', '.join(sorted(twice))}: two configurations of that name would share a workspace")
    launcher: Launcher = arguments.launcher
    base = Path(arguments.workspace or "distune_workspace").absolute()
    workspaces = [base] if len(configs) == 1 else [base / stem for stem in stems]
    return BatchScript(
        configs=[_word(config.absolute()) for config in configs],
        workspaces=[_word(workspace) for workspace in workspaces],
        name=_NAME.sub("-", stems[0] if len(configs) == 1 else "distune"),
        nodes=arguments.nodes,
        ntasks_per_node=arguments.ntasks_per_node,
        time=arguments.time,
        python=_word(sys.executable),
        launcher=launcher,
        mpirun=_mpirun() if launcher == "mpirun" else (),
        warn_s=arguments.warn,
        more=arguments.option,
        run_options=["--quiet", *(word for text in arguments.set for word in ("--set", _word(text)))],
    )


def _mpirun() -> list[str]:
    """The start of the command."""
    from distune.distributed.launcher import mpirun_command

    *words, _ = mpirun_command(1, [])
    return [*map(_word, words), '"$SLURM_NTASKS"']


def _word(text: object) -> str:
    return shlex.quote(str(text))


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"minutes, M:SS, H:MM:SS, D-H, D-H:MM or D-H:MM:SS, not {text!r}")
    return text
