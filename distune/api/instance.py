"""One instance of a benchmark, in a process of its own: waits for the word to start, times, says what came of it.

Started by ``distune.benchmark`` as ``python -m distune.api.instance PAYLOAD``; the payload is a pickle that its parent
has just written. It says ``ready`` when the model is loaded, and begins when it reads a line.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Payload:
    """What an instance is told.

    Attributes:
        model: Bytes of the ONNX model.
        feed: One batch by input name, where the model itself is timed.
        b_func: The user's function, which gets the model; ``None`` times the model on ``feed``.
        threads: Intra-op threads.
        cores: Cores to stay on; empty for any.
        min_seconds: How long to time at least.
        python_path: The parent's ``sys.path``.
    """

    model: bytes
    feed: Mapping[str, NDArray[Any]] | None
    b_func: Callable[..., Any] | None
    threads: int
    cores: tuple[int, ...]
    warmup: int
    iteration: int
    min_seconds: float
    python_path: tuple[str, ...]


def main(path: str) -> int:
    """Time the payload in the file ``path``."""
    payload: Payload = pickle.loads(Path(path).read_bytes())
    sys.path[:] = payload.python_path
    if payload.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, payload.cores)
    run = _prepared(payload)
    print("ready", flush=True)
    sys.stdin.readline()
    from distune.evaluation.single import measure_alone

    measured = measure_alone(run, warmup=payload.warmup, iteration=payload.iteration, min_seconds=payload.min_seconds)
    print(json.dumps(asdict(measured)), flush=True)
    return 0


def _prepared(payload: Payload) -> Callable[[], object]:
    import onnx

    from distune.api.model import onnx_inputs
    from distune.backends.onnxruntime.backend import OnnxRuntimeModel
    from distune.evaluation.callable_model import CallableModel

    proto = onnx.load_model_from_string(payload.model)
    model = OnnxRuntimeModel(proto, payload.threads)
    if payload.b_func is None:
        assert payload.feed is not None  # one of the two is given
        return model.timed(payload.feed)
    function, argument = payload.b_func, CallableModel(model, onnx_inputs(proto))
    return lambda: function(argument)


if __name__ == "__main__":
    # Under its real name, so that the payload's class is the one that its parent pickled.
    from distune.api import instance

    sys.exit(instance.main(sys.argv[1]))
