"""The examples on trained models, next to what ONNX Runtime's own quantizers make of the same models and data.

Every example runs as ``python -m distune run CONFIG`` in a process of its own. Then fp32, its model, and those of plain
``quantize_static`` (QDQ, uint8 activations, int8 weights per channel, minmax, all op types), ``quantize_dynamic`` and,
where the example is weight-only, round-to-nearest ``MatMulNBits`` are scored by the example's own evaluation and timed
against fp32, all in plain sessions of this process with one thread: what the tuner says of its model is not believed.

    DISTUNE_ASSETS=... python benchmarks/models.py [--only NAME] [--limit 1000] [--json models.json]

The exit code is 1 where an example misses what it promises (``EXAMPLES``).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host import host

if TYPE_CHECKING:
    import onnx

    from distune.backends.base import Feed, InputInfo, RunnableModel
    from distune.config.job import TuningJob
    from distune.report.result import RunResult

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "launch" / "examples"
FINISHED = (0, 3, 4)
"""Exit codes of a run that came to an end: met, not met, budget spent."""

LIMIT = "evaluation.accuracy.dataloader.dataset.Npz.limit"
LATENCY_SECONDS = 5.0
TUNED = "distune"
FP32 = "fp32"


@dataclass(frozen=True)
class Example:
    """A configuration and what it promises beside keeping the accuracy.

    Attributes:
        limited: ``--limit`` shortens its evaluation set.
        faster: Its model is faster than fp32 at batch 1.
        says_fp32_is_faster: It is not, and the result says so.
        size_ratio: Its model is smaller than this part of fp32.
    """

    name: str
    limited: bool = False
    faster: bool = False
    says_fp32_is_faster: bool = False
    size_ratio: float = 1.0


EXAMPLES = (
    Example("resnet20", limited=True, faster=True),
    Example("resnet32", limited=True, faster=True),
    Example("mobilenetv1", limited=True, faster=True),
    Example("mbv3", limited=True, says_fp32_is_faster=True),
    Example("minilm", faster=True),
    Example("minilm_dynamic", faster=True),
    Example("chargpt"),
    Example("chargpt_woq", size_ratio=0.35),
)


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        example: The example whose data and evaluation were used.
        method: ``fp32``, ``distune``, ``quantize_static``, ``quantize_dynamic`` or ``RTN``.
        metric: Its accuracy; null where ONNX Runtime does not run it.
        change: Of the accuracy against fp32, relative.
        met: The accuracy is kept, by the criterion of the example.
        latency_ratio, ci_low, ci_high: Batch 1, one thread, against fp32, with the 95% confidence interval.
        latency_ms: Median of one run.
        size_ratio: Of the file to that of fp32.
        ops_int8: Ops with weights that run on integers, counted in ONNX Runtime's optimised graph.
        ops: Ops with weights.
        trials: Models that the tuner judged.
        seconds: Wall time to make it: the whole process of a run, or the call of the quantizer.
        note: What the result says of its speed, or why the model does not run.
    """

    example: str
    method: str
    metric: float | None = None
    change: float | None = None
    met: bool = False
    latency_ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    latency_ms: float | None = None
    size_ratio: float | None = None
    ops_int8: int | None = None
    ops: int | None = None
    trials: int | None = None
    seconds: float = 0.0
    note: str = ""


def main() -> int:
    """Run the examples, print the table, check the goals. Exit code 1 where one was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [example.name for example in EXAMPLES]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--limit", type=int, help="images to evaluate on; all by default")
    parser.add_argument("--json", type=Path, help="write the figures here, after every example")
    given = parser.parse_args()
    if "DISTUNE_ASSETS" not in os.environ:
        parser.error("set DISTUNE_ASSETS to the folder with models/ and data/")
    logging.getLogger().setLevel(logging.ERROR)  # quantize_static warns of every tensor that it does not quantize
    rows: list[Row] = []
    missed: list[str] = []
    machine: dict[str, Any] = host()
    plain_done: set[str] = set()
    print(heading(), flush=True)
    for example in EXAMPLES:
        if given.only and example.name not in given.only:
            continue
        with tempfile.TemporaryDirectory(prefix="distune-models-") as folder:
            result, new = compare(example, Path(folder), given.limit, plain_done)
        rows += new
        missed += misses(example, result, new)
        machine["versions"] = dict(result.versions)
        print("\n".join(map(line, new)), flush=True)
        if given.json is not None:
            figures = {"limit": given.limit, "host": machine, "missed": missed, "rows": [asdict(row) for row in rows]}
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps({"benchmark": "models", **figures}, indent=2) + "\n")
    for goal in missed:
        print(f"MISSED: {goal}")
    return 1 if missed else 0


def compare(example: Example, folder: Path, limit: int | None, plain_done: set[str]) -> tuple[RunResult, list[Row]]:
    """The run of an example, and the rows of its model.

    Args:
        plain_done: Plain quantizers done so far, by model: two examples on one model share their rows.
    """
    overrides = [f"{LIMIT}={limit}"] if limit is not None and example.limited else []
    config = FOLDER / f"{example.name}.yaml"
    result, seconds = tune(config, overrides, folder)
    bench = Bench(example, _job(config, overrides))
    rows = [bench.row(FP32, Path(bench.job.model.path), 0.0)]
    best = folder / "best" / "model.onnx"
    if best.is_file():
        rows.append(bench.row(TUNED, best, seconds, result))
    for method, quantize in plain_quantizers(bench).items():
        key = f"{method} {bench.job.model.path}"
        if key in plain_done:
            continue
        plain_done.add(key)
        path = folder / f"{method}.onnx"
        started = time.perf_counter()
        quantize(path)
        rows.append(bench.row(method, path, time.perf_counter() - started))
    return result, rows


def tune(config: Path, overrides: Sequence[str], workspace: Path) -> tuple[RunResult, float]:
    """Run an example; its result and its wall time."""
    from distune.report.result import RunResult

    options = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "distune", "run", str(config), "--workspace", str(workspace), "--quiet", *options]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode not in FINISHED:
        sys.exit(f"{' '.join(command)}\nended with code {done.returncode}:\n{done.stderr[-4000:]}")
    return RunResult.from_json((workspace / "result.json").read_text()), seconds


class Bench:
    """Scores and times models of one example in plain sessions."""

    def __init__(self, example: Example, job: TuningJob) -> None:
        from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
        from distune.data.loader import open_dataloader
        from distune.evaluation.accuracy import Evaluator
        from distune.evaluation.feeds import first_feed, to_feed

        self.example = example
        self.job = job
        facts = OnnxRuntimeBackend(job).facts()
        self._ops = sum(op.has_weight for op in facts.capability.ops)
        self._evaluator = Evaluator(job.evaluation, facts.inputs, facts.outputs, job.seed)
        if job.calibration.dataloader is None:
            sys.exit(f"{example.name}: the benchmark needs calibration data in the configuration")
        calibration = open_dataloader(job.calibration.dataloader, job.seed)
        size = job.calibration.sampling_sizes[0]
        inputs: Sequence[InputInfo] = facts.inputs
        self.calibration = [to_feed(batch.inputs, inputs) for batch in calibration.head(size)]
        self._feed = first_feed(self._evaluator.source or calibration, inputs, 1)
        self._fp32 = Path(job.model.path)
        self._baseline = _plain(self._fp32)
        self._fp32_metric = self._evaluator.score(self._baseline).value

    def row(self, method: str, path: Path, seconds: float, result: RunResult | None = None) -> Row:
        """The row of a model file."""
        from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

        from distune.evaluation.latency import measure
        from distune.report.words import speed

        size_ratio = path.stat().st_size / self._fp32.stat().st_size
        try:
            model = _plain(path)
        except (ort_errors.NotImplemented, ort_errors.Fail, ort_errors.InvalidGraph) as error:
            why = f"does not load: {str(error).splitlines()[0][:100]}"
            return Row(self.example.name, method, size_ratio=size_ratio, seconds=seconds, note=why)
        metric = self._fp32_metric if method == FP32 else self._evaluator.score(model).value
        timed = measure(
            model.timed(self._feed), self._baseline.timed(self._feed), max_seconds=LATENCY_SECONDS, warmup=3
        )
        return Row(
            self.example.name,
            method,
            metric,
            (metric - self._fp32_metric) / abs(self._fp32_metric),
            self._meets(metric),
            timed.ratio,
            timed.ci_low,
            timed.ci_high,
            timed.candidate_ms,
            size_ratio,
            integer_ops(path),
            self._ops,
            len(result.trials) if result is not None else None,
            seconds,
            speed(result.best.latency) if result is not None and result.best is not None else "",
        )

    def _meets(self, metric: float) -> bool:
        criterion = self.job.criterion
        if criterion.kind != "relative":
            sys.exit(f"{self.example.name}: the benchmark judges by a relative criterion")
        loss = (self._fp32_metric - metric) if criterion.higher_is_better else (metric - self._fp32_metric)
        return math.isfinite(metric) and loss <= criterion.tolerance * abs(self._fp32_metric)


def plain_quantizers(bench: Bench) -> dict[str, Callable[[Path], object]]:
    """What ONNX Runtime brings itself, each writing its model to a path."""
    methods: dict[str, Callable[[Path], object]] = {
        "quantize_static": partial(_static, bench.job.model.path, bench.calibration),
        "quantize_dynamic": partial(_dynamic, bench.job.model.path),
    }
    if bench.job.approach == "weight_only":
        methods["RTN"] = partial(_rtn, bench.job.model.path)
    return methods


def _static(source: str, feeds: Iterable[Feed], target: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            feed = next(self._feeds, None)
            return None if feed is None else dict(feed)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _dynamic(source: str, target: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, target)


def _rtn(source: str, target: Path) -> None:
    """4 bits, groups of 32, asymmetric: the preset ``RTN_G32ASYM``."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), False)


def integer_ops(path: Path) -> int:
    """Nodes of the optimised graph that compute on integers with integer weights, whichever quantizer named them."""
    from onnx import numpy_helper

    from distune.backends.onnxruntime.execution import computes_on_integers
    from distune.backends.onnxruntime.session import optimized_graph

    graph = optimized_graph(path.read_bytes()).graph
    constants = [tensor for tensor in graph.initializer if _is_integer(tensor) and len(tensor.dims) > 1]
    # Zeros and ones only pick values: a short cut that runs as a convolution has no weight of the model.
    weights = {tensor.name for tensor in constants if not {*numpy_helper.to_array(tensor).flat} <= {0, 1}}
    return sum(
        (node.op_type == "Gather" or computes_on_integers(node)) and not weights.isdisjoint(node.input)
        for node in graph.node
    )


def _is_integer(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in (tensor.INT8, tensor.UINT8)


def _plain(path: Path) -> RunnableModel:
    from distune.backends.base import Outputs, RunnableModel
    from distune.backends.onnxruntime.session import create_session

    class Plain(RunnableModel):
        """A model file in a session, nothing of the tuner around it."""

        def __init__(self) -> None:
            self._session = create_session(path.read_bytes())

        def predict(self, feed: Feed) -> Outputs:
            return list(self._session.run(None, dict(feed)))

        def timed(self, feed: Feed) -> Callable[[], object]:
            return partial(self._session.run, None, dict(feed))

        @property
        def native(self) -> Any:
            return self._session

        @property
        def size_bytes(self) -> int:
            return path.stat().st_size

    return Plain()


def _job(config: Path, overrides: Sequence[str]) -> TuningJob:
    from distune.api.names import known_names
    from distune.config.load import load_config

    return load_config(config, list(overrides), known_names()).job()


def misses(example: Example, result: RunResult, rows: Sequence[Row]) -> list[str]:
    """What the example promises and does not keep."""
    tuned = next((row for row in rows if row.method == TUNED), None)
    if tuned is None or result.best is None or tuned.metric is None:
        return [f"{example.name}: {result.outcome}, no model that runs"]
    out = []
    if result.outcome != "met" or not tuned.met:
        out.append(f"{result.outcome}, {tuned.change:+.2%}: the accuracy is not kept")
    if result.best.accuracy is None or not math.isclose(result.best.accuracy, tuned.metric, rel_tol=1e-6):
        out.append(f"the result says {result.best.accuracy}, its model in a plain session gives {tuned.metric}")
    if example.faster and not (tuned.ci_high is not None and tuned.ci_high < 1):
        out.append(f"latency {_interval(tuned)} of fp32, which is not below 1")
    slower = result.best.latency is not None and (result.best.latency.ci_low or 0.0) > 1
    if example.says_fp32_is_faster and not slower:
        out.append(f"the result says {tuned.note!r}, not that fp32 is faster")
    if tuned.size_ratio is None or tuned.size_ratio >= example.size_ratio:
        out.append(f"size {tuned.size_ratio} of fp32, not below {example.size_ratio}")
    return [f"{example.name}: {text}" for text in out]


def heading() -> str:
    """Of the table."""
    return (
        f"{'example':<16}{'method':<18}{'metric':>9}{'change':>10}{'met':>5}{'latency [95%]':>24}{'size':>7}"
        f"{'int8 ops':>10}{'trials':>8}{'seconds':>9}"
    )


def line(row: Row) -> str:
    """One row for people; latency and size are fractions of fp32."""
    if row.metric is None:
        return f"{row.example:<16}{row.method:<18}{row.note}"
    ops = f"{row.ops_int8} of {row.ops}"
    trials = "" if row.trials is None else str(row.trials)
    return (
        f"{row.example:<16}{row.method:<18}{row.metric:>9.4f}{row.change:>+10.2%}{'yes' if row.met else 'no':>5}"
        f"{_interval(row):>24}{row.size_ratio:>7.2f}{ops:>10}{trials:>8}{row.seconds:>9.1f}  {row.note}"
    ).rstrip()


def _interval(row: Row) -> str:
    if row.method == FP32:
        return f"{row.latency_ms:.3f} ms"
    return f"{row.latency_ratio:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
