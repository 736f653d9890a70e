"""Show what distune finds on this machine; make the environment of sigoptlite."""

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
    for name, finding in findings():
        print(f"{name:<14} {finding}")
    return 0


def findings() -> Iterator[tuple[str, str]]:
    """What was found, by name."""
    yield "distune", __version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "cores", _cores()
    for package in _BASE:
        yield package, _version(package) or "missing"
    for extra, packages in EXTRAS.items():
        yield f"[{extra}]", _extra(extra, packages)
    yield "MPI", _mpi()
    yield "sigoptlite", _sigoptlite()


def _cores() -> str:
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{allowed} usable of {os.cpu_count()} logical, {psutil.cpu_count(logical=False) or 'unknown'} physical"


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


def _sigoptlite() -> str:
    from distune.errors import UsageError
    from distune.strategies.sigopt_service.environment import INSTALL_COMMAND, lite_python

    try:
        return str(lite_python())
    except UsageError:
        return f"no environment: {INSTALL_COMMAND}"
