"""Show what distune finds on this machine, and under mpirun on every rank; make the environment of sigoptlite."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from distune import __version__

INSTALLABLE = ("sigoptlite",)

EXTRAS = {
    "mpi": ("mpi4py",),
    "torch": ("torch", "torchao"),
    "samplers": ("optuna",),
    "sigopt": ("sigopt",),
}
"""Distributions that each extra brings."""

_BASE = ("numpy", "onnx", "onnxruntime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is to be made."""
    parser.add_argument(
        "--install",
        choices=INSTALLABLE,
        help="make an environment of its own for a component whose dependencies do not fit distune's",
    )
    parser.add_argument("--python", default="", metavar="PATH", help="interpreter to make that environment from")


def main(arguments: argparse.Namespace) -> int:
    """Install what was asked for, or print the findings, one a line."""
    if arguments.install:
        from distune.strategies.sigopt_service.environment import install

        print(install(arguments.python, print))
        return 0
    from distune.distributed.topology import launched_by_mpi, launched_rank

    if not launched_rank():
        for name, finding in findings():
            print(f"{name:<14} {finding}")
        sys.stdout.flush()
    if launched_by_mpi():
        from distune.cli.doctor_ranks import examine_ranks

        return examine_ranks()
    return 0


def findings() -> Iterator[tuple[str, str]]:
    """What was found, by name."""
    yield "distune", __version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield from _resources()
    for package in _BASE:
        yield package, _version(package) or "missing"
    for extra, packages in EXTRAS.items():
        yield f"[{extra}]", _extra(extra, packages)
    yield "backends", _backends()
    yield "MPI", _mpi()
    yield from _launcher()
    yield "sigoptlite", _sigoptlite()
    yield from _leftovers()


def _resources() -> Iterator[tuple[str, str]]:
    import psutil

    from distune.distributed.placement import THREAD_VARIABLES
    from distune.distributed.resources import own_resources

    own = own_resources()
    machine = f"{os.cpu_count()} logical, {psutil.cpu_count(logical=False) or 'unknown'} physical"
    limit = "" if own.cpu_limit is None else f" (cgroup or Slurm allow {own.cpu_limit:g})"
    yield "cores", f"{own.usable_cores:g} usable of {machine}{limit}"
    said = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    fitting = max(1, int(own.usable_cores))
    yield "threads", ", ".join(said) or f"{fitting} for one rank, 1 each for {fitting} ranks here"
    yield "memory", f"{own.memory_bytes / 2**30:.1f} GiB usable"
    yield "GPUs", str(own.gpus)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extra(extra: str, packages: tuple[str, ...]) -> str:
    missing = [package for package in packages if _version(package) is None]
    if missing:
        return f"missing {', '.join(missing)}: pip install 'distune[{extra}]'"
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def _mpi() -> str:
    """Vendor and version as mpi4py's library says, asked in a process of its own: importing it must not start MPI."""
    if _version("mpi4py") is None:
        return "not usable without mpi4py"
    ask = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.strip("\0 \n").splitlines()
    if done.returncode or not lines:
        reason = done.stderr.strip().splitlines()
        return f"mpi4py finds no MPI library{': ' + reason[-1] if reason else ''}"
    return lines[0].split(", package")[0]


def _backends() -> str:
    ready = ["onnxruntime"] if _version("onnxruntime") else []
    if all(_version(package) for package in EXTRAS["torch"]):
        return ", ".join([*ready, "pytorch"])
    return f"{', '.join(ready) or 'none'}; pytorch needs pip install 'distune[torch]'"


def _launcher() -> Iterator[tuple[str, str]]:
    """The mpirun that ``run --np`` starts, and what it does with a rank that dies."""
    from distune.distributed.launcher import find_mpirun
    from distune.errors import DistuneError

    try:
        found = find_mpirun()
    except DistuneError as error:
        yield "mpirun", f"none for --np: {error}"
        return
    yield "mpirun", f"{found.path}: {found.version}"
    yield (
        "ULFM",
        "yes: with `mpirun --with-ft ulfm` (--np gives it) a run survives lost ranks"
        if found.ulfm
        else "no: a lost rank ends the job, and the same command resumes it",
    )


def _leftovers() -> Iterator[tuple[str, str]]:
    from distune.distributed.leftovers import leftovers

    found = leftovers()
    total = sum(left.bytes for left in found)
    if found:
        yield (
            "left over",
            f"{len(found)} of ended MPI jobs, {total / 2**20:.0f} MiB; nobody uses them, remove with rm -r:",
        )
    for left in found:
        yield "", str(left.path)


def _sigoptlite() -> str:
    from distune.errors import UsageError
    from distune.strategies.sigopt_service.environment import INSTALL_COMMAND, lite_python

    try:
        return str(lite_python())
    except UsageError:
        return f"no environment: {INSTALL_COMMAND}"
