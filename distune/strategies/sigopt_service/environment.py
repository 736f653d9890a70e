"""The Python environment of ``sigoptlite``, which pins a NumPy that distune cannot live with.

It is made once a machine in the user's cache folder, by ``distune doctor --install sigoptlite``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distune.errors import DistuneError, UsageError

INSTALL_COMMAND = "distune doctor --install sigoptlite"

SIGOPTLITE = "0.1.2"

# libsigopt pins numpy<1.23, which has no wheels from Python 3.11 on; with 1.26.4 its own code runs as it is, so what it
# needs is named here in full and its pins are not asked. jsonschema 3 imports pkg_resources, gone from setuptools 81.
REQUIREMENTS = (
    f"sigoptlite=={SIGOPTLITE}",
    "libsigopt==1.0.0",
    "qmcpy==1.2",
    "numpy==1.26.4",
    "scipy==1.13.1",
    "jsonschema==3.2.0",
    "attrs",
    "pyrsistent",
    "six",
    "setuptools==69.5.1",
)

PYTHONS = ((3, 11), (3, 10), (3, 12))
"""Versions for which all of ``REQUIREMENTS`` exist (sigoptlite itself needs 3.10)."""

_CHECK = "import sigoptlite; sigoptlite.LocalDriver()"
_READY = "distune-ready"


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/distune``, else ``~/.cache/distune``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distune"


def environment_dir() -> Path:
    """Where the environment is or would be."""
    return cache_dir() / f"sigoptlite-{SIGOPTLITE}"


def lite_python() -> Path:
    """The interpreter that has sigoptlite.

    Raises:
        UsageError: The environment was not made yet.
    """
    place = environment_dir()
    python = place / "bin" / "python"
    if not (place / _READY).is_file() or not python.exists():
        raise UsageError(f"driver: lite needs sigoptlite in an environment of its own; make it with: {INSTALL_COMMAND}")
    return python


def install(python: str = "", say: Callable[[str], None] = lambda message: None) -> Path:
    """Make the environment unless it is there; returns its interpreter.

    Args:
        python: Interpreter to make it from; found by itself where empty.
        say: Told what is done.

    Raises:
        UsageError: No fitting interpreter.
        DistuneError: An installation step failed; the message ends with its output.
    """
    place = environment_dir()
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_suffix(".lock")):
        try:
            return lite_python()
        except UsageError:
            base = _fitting(python)
        say(f"making {place} from {base}")
        shutil.rmtree(place, ignore_errors=True)
        _run("make the environment", [base, "-m", "venv", str(place)])
        inner = place / "bin" / "python"
        say(f"installing {', '.join(REQUIREMENTS)}")
        _run("install", [str(inner), "-m", "pip", "install", "--quiet", "--no-deps", *REQUIREMENTS])
        _run("start sigoptlite", [str(inner), "-c", _CHECK])
        (place / _READY).write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    return inner


def _fitting(python: str) -> str:
    if python:
        found = _version(python)
        if found not in PYTHONS:
            raise UsageError(f"{python} is Python {_dotted(found)}; sigoptlite needs {_wanted()}")
        return python
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        candidate = shutil.which(f"python{_dotted(version)}")
        if candidate is not None and _version(candidate) == version:
            return candidate
    raise UsageError(
        f"sigoptlite needs Python {_wanted()}, and none is on PATH; name one: {INSTALL_COMMAND} --python PATH"
    )


def _version(python: str) -> tuple[int, ...]:
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        raise UsageError(f"{python} cannot be started: {error.strerror or error}") from error
    return tuple(int(part) for part in done.stdout.split()) if done.returncode == 0 else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "unknown"


def _wanted() -> str:
    return " or ".join(_dotted(version) for version in PYTHONS)


def _run(what: str, command: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).strip()[-2000:]
        raise DistuneError(f"the environment of sigoptlite: cannot {what} ({' '.join(command[:4])} …):\n{output}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two installations on one machine wait for each other."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
