"""How fast a model is: latency with an interval, and throughput of several instances at once.

::

    from distune import benchmark
    from distune.config import BenchmarkConfig

    figures = benchmark.fit("model.onnx", BenchmarkConfig(num_of_instance=2), b_dataloader=batches)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distune.api.instance import Payload
from distune.api.model import any_onnx_model, onnx_inputs
from distune.config.conf import BenchmarkConfig
from distune.distributed.child_process import child_environment
from distune.errors import DistuneError, ModelError, UsageError
from distune.evaluation.single import SingleLatency

_TOGETHER_SECONDS = 2.0
"""How long several instances run at once: long enough that starting and ending do not matter."""
_START_SECONDS = 300.0
_ERROR_TAIL = 3000


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured.

    Attributes:
        latency_ms: Median milliseconds of one run (of ``b_func``: of one call), the median over the instances.
        low_ms, high_ms: The narrowest range that holds every instance's 95% confidence interval of its median.
        throughput: Samples a second of all instances together (of ``b_func``: calls a second).
        batch_size: Samples of one run; 1 for a ``b_func``.
        cores_per_instance: Threads of each instance.
        instances: What each measured.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    throughput: float
    batch_size: int
    cores_per_instance: int
    instances: tuple[SingleLatency, ...]

    def __str__(self) -> str:
        count = len(self.instances)
        return (
            f"latency     {self.latency_ms:.4g} ms [{self.low_ms:.4g}, {self.high_ms:.4g}] a run of "
            f"{self.batch_size} sample{'s' if self.batch_size > 1 else ''}\n"
            f"throughput  {self.throughput:.4g} samples/s of {count} instance{'s' if count > 1 else ''} with "
            f"{self.cores_per_instance} core{'s' if self.cores_per_instance > 1 else ''} each"
        )


def fit(
    model: Any,
    conf: BenchmarkConfig | None = None,
    b_dataloader: Iterable[Any] | None = None,
    b_func: Callable[..., Any] | None = None,
    *,
    quiet: bool = False,
) -> BenchmarkResult:
    """Time a model, in fresh processes; the script that calls this is not run again.

    Args:
        model: Path of an ONNX file, ``onnx.ModelProto``, or the result of ``quantization.fit``; in any precision.
        conf: Warm-up, limits, instances and their cores.
        b_dataloader: Iterable of ``(input, label)`` batches; its first batch is timed.
        b_func: Instead: gets the model and runs it as you like; one call is one run.
        quiet: Do not print the figures.

    Raises:
        UsageError: Config, model, data or function is at fault.
        DistuneError: An instance failed; carries the end of its standard error.
    """
    conf = BenchmarkConfig() if conf is None else conf
    if not isinstance(conf, BenchmarkConfig):
        raise UsageError(f"conf is a {type(conf).__name__}; expected a BenchmarkConfig")
    if (b_dataloader is None) == (b_func is None):
        raise UsageError("give either b_dataloader or b_func")
    proto = any_onnx_model(model)
    feed, batch_size = (None, 1) if b_dataloader is None else _feed(proto, b_dataloader)
    threads = conf.cores_per_instance or conf.intra_num_of_threads or 1
    count = conf.num_of_instance
    payloads = [
        Payload(
            _bytes(proto),
            feed,
            b_func,
            threads,
            cores,
            conf.warmup,
            conf.iteration,
            _TOGETHER_SECONDS if count > 1 and conf.iteration < 0 else 0.0,
            tuple(sys.path),
        )
        for cores in _shares(count, threads)
    ]
    measured = tuple(_measured(payloads))
    result = BenchmarkResult(
        latency_ms=statistics.median(each.ms for each in measured),
        low_ms=min(each.low_ms for each in measured),
        high_ms=max(each.high_ms for each in measured),
        throughput=sum(each.runs / each.seconds for each in measured) * batch_size,
        batch_size=batch_size,
        cores_per_instance=threads,
        instances=measured,
    )
    if not quiet:
        print(result)
    return result


def _feed(proto: Any, dataloader: Iterable[Any]) -> tuple[Any, int]:
    from distune.data.loader import open_dataloader
    from distune.evaluation.feeds import to_feed

    batch = next(iter(open_dataloader(dataloader, 0)))
    return to_feed(batch.inputs, onnx_inputs(proto)), batch.size


def _bytes(proto: Any) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except ValueError as error:  # protobuf ends at 2 GiB
        raise ModelError(f"the model is too large to be benchmarked: {error}") from error


def _shares(count: int, threads: int) -> list[tuple[int, ...]]:
    """Cores of each instance, each core for one of them.

    Raises:
        UsageError: There are not enough.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [()] * count
    cores = sorted(os.sched_getaffinity(0))
    if count * threads > len(cores):
        raise UsageError(
            f"num_of_instance {count} with {threads} cores each need {count * threads} cores, and this process may use "
            f"{len(cores)}: lower num_of_instance or cores_per_instance"
        )
    return [tuple(cores[index * threads : (index + 1) * threads]) for index in range(count)]


def _measured(payloads: Sequence[Payload]) -> list[SingleLatency]:
    """What the instances measure, all at the same time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distune-benchmark-")))
        processes = [stack.enter_context(_Instance(payload, folder / str(i))) for i, payload in enumerate(payloads)]
        for process in processes:
            process.expect("ready")
        for process in processes:
            process.start()
        return [SingleLatency(**json.loads(process.expect("{"))) for process in processes]


class _Instance:
    """An instance's process; ends it on the way out."""

    def __init__(self, payload: Payload, path: Path) -> None:
        path.write_bytes(_packed(payload))
        self._errors = path.with_suffix(".err").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distune.api.instance", str(path)],
            env=child_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> _Instance:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def start(self) -> None:
        """Give the word."""
        assert self._process.stdin is not None  # a pipe, see above
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def expect(self, beginning: str) -> str:
        """The next line that begins so; what else is printed comes from the user's function, and is passed on.

        Raises:
            DistuneError: The process ended without it.
        """
        assert self._process.stdout is not None  # a pipe, see above
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line
            print(line, end="")
        code = self._process.wait(_START_SECONDS)
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip()[-_ERROR_TAIL:]
        raise DistuneError(f"a benchmark instance ended with code {code}:\n{tail}")


def _packed(payload: Payload) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(payload, protocol=5))
    except Exception as error:
        raise UsageError(
            f"b_func cannot travel to the process that is timed: {type(error).__name__}: {error}; make it a function "
            "at the top level of a module"
        ) from error


__all__ = ["BenchmarkResult", "fit"]
