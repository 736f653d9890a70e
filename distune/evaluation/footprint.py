"""Memory footprint: the peak resident set of a fresh process that loads an exported model and runs it once.

The process is started by ``exec`` of this module, so that nothing of the tuner is in its memory, and without the
launcher's variables, since a child that looks like an MPI rank may take the real ranks down with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distune.config.launcher_variables import without_launcher
from distune.errors import TrialError

if TYPE_CHECKING:
    from distune.backends.base import ExportedModel, Feed

TIMEOUT_SECONDS = 600.0

_STATUS = Path("/proc/self/status")
_ERROR_TAIL = 2000


def peak_resident_bytes(
    runner: str, model: ExportedModel, feed: Feed, threads: int = 1, timeout: float = TIMEOUT_SECONDS
) -> int:
    """Peak resident bytes of a fresh process that loads ``model`` and runs ``feed`` once.

    Args:
        runner: ``module:function``, as in ``Backend.standalone``.
        model: The exported files.
        feed: One batch of inputs, e.g. float32 ``[N, 3, 32, 32]`` by input name.
        threads: Intra-op threads.
        timeout: Seconds after which the process is ended.

    Raises:
        TrialError: The process fails or does not end in time; carries the end of its standard error.
    """
    with tempfile.TemporaryDirectory(prefix="distune-footprint-") as folder:
        for name, content in model.files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        feed_path = Path(folder, "__feed__.npz")
        # Positions, not names: input names may hold characters that no archive member can.
        np.savez(feed_path, *[_storable(array) for array in feed.values()])
        command = [
            sys.executable,
            "-m",
            "distune.evaluation.footprint",
            runner,
            str(Path(folder, next(iter(model.files)))),
        ]
        command += [str(feed_path), "--names", json.dumps(list(feed)), "--threads", str(threads)]
        try:
            done = subprocess.run(
                command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise TrialError(f"the footprint process did not end within {timeout:g} s and was ended") from error
    if done.returncode != 0:
        tail = done.stderr[-_ERROR_TAIL:].strip()
        raise TrialError(f"the footprint process ended with code {done.returncode}: {tail or 'it wrote no error'}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _environment() -> dict[str, str]:
    """This process's variables without the launcher's, and with this package importable."""
    kept = without_launcher(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")]))
    return kept


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    # Strings come as arrays of objects, which only a pickle could hold.
    return array.astype(np.str_) if array.dtype.hasobject else array


# ---------------------------------------------------------------------------------------------- in the fresh process


def own_peak_bytes() -> int:
    """Peak resident bytes of this process so far.

    Raises:
        TrialError: The operating system does not tell.
    """
    # Not ru_maxrss: on Linux that survives exec, and would be the parent's where the parent is the larger one.
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raise TrialError("the memory footprint cannot be measured here: neither VmHWM nor a peak of its own is available")


def main(arguments: list[str] | None = None) -> int:
    """Load and run a model once; write ``{"peak_bytes": n}`` to standard output."""
    parser = argparse.ArgumentParser(prog="python -m distune.evaluation.footprint", description=main.__doc__)
    parser.add_argument("runner", help="module:function(path, feed, threads)")
    parser.add_argument("model", help="the model file")
    parser.add_argument("feed", help=".npz with the inputs in order")
    parser.add_argument("--names", type=json.loads, required=True, help="JSON list of the inputs' names")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    with np.load(given.feed, allow_pickle=False) as stored:
        feed: Mapping[str, NDArray[Any]] = {name: stored[f"arr_{index}"] for index, name in enumerate(given.names)}
    module, _, function = given.runner.partition(":")
    getattr(import_module(module), function)(given.model, feed, given.threads)
    print(json.dumps({"peak_bytes": own_peak_bytes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["main", "own_peak_bytes", "peak_resident_bytes"]
