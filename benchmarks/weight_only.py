"""Accuracy of the weight-only algorithms at 4 and 3 bits, in one table.

Every MatMul of the model is quantized alike, asymmetric, with groups of 32 and of 128 input channels. Widths that
``MatMulNBits`` does not run are stored in wider integers, which changes no number; ``bytes`` is what the width itself
would take with its scales and zero points, the other weights of the model not counted.

    python benchmarks/weight_only.py [--config launch/examples/chargpt_woq.yaml] [--json weight_only.json]

The exit code is 1 where GPTQ does not beat RTN or AWQ is worse than RTN.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
    from distune.config.job import TuningJob
    from distune.space.op_config import TuningConfig

ROOT = Path(__file__).resolve().parents[1]
PLAIN_GPTQ = {"actorder": False, "mse": False}


@dataclass(frozen=True)
class Variant:
    """One row of the table: an algorithm with its settings."""

    label: str
    algorithm: str
    scheme: str = "asym"
    recipes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Format:
    """One column of the table."""

    bits: int
    group_size: int

    @property
    def label(self) -> str:
        """As in papers: ``w4g32``."""
        return f"w{self.bits}g{self.group_size if self.group_size > 0 else 'row'}"


@dataclass(frozen=True)
class Figure:
    """One cell.

    Attributes:
        accuracy: In the metric of the configuration.
        loss: Relative to fp32, positive where it is worse.
        weight_bytes: Of the quantized weights at their own width.
        seconds: To quantize all weights and load the model.
    """

    algorithm: str
    format: str
    accuracy: float
    loss: float
    weight_bytes: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """The whole table."""

    config: str
    metric: str
    fp32: float
    calibration_s: float
    figures: tuple[Figure, ...]


VARIANTS = (
    Variant("RTN", "RTN"),
    Variant("RTN, sym", "RTN", "sym"),
    Variant("HQQ", "HQQ"),
    Variant("AWQ", "AWQ"),
    Variant("GPTQ, as in the paper", "GPTQ", recipes=(("gptq_args", PLAIN_GPTQ),)),
    Variant("GPTQ", "GPTQ"),
    Variant("GPTQ, sym", "GPTQ", "sym"),
)
FORMATS = (Format(4, 32), Format(4, 128), Format(3, 32), Format(3, 128))


def main() -> int:
    """Measure, print the table, check the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "launch" / "examples" / "chargpt_woq.yaml")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    result = measure(given.config.resolve(), VARIANTS, FORMATS)
    print(table(result))
    missed = misses(result)
    for line in missed:
        print(f"MISSED: {line}")
    if given.json is not None:
        given.json.write_text(json.dumps({"benchmark": "weight_only", **asdict(result)}, indent=2) + "\n")
    return 1 if missed else 0


def measure(config: Path, variants: Sequence[Variant], formats: Sequence[Format]) -> Result:
    """Calibrate once, then quantize and evaluate every cell."""
    from dataclasses import replace

    from distune.api.names import known_names
    from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
    from distune.config.load import load_config
    from distune.data.loader import open_dataloader
    from distune.evaluation.accuracy import Evaluator
    from distune.evaluation.feeds import to_feed

    job = load_config(config, [], known_names()).job()
    if job.evaluation.dataloader is None or job.calibration.dataloader is None:
        sys.exit("the benchmark needs evaluation and calibration data in the configuration")
    calibration = job.calibration.dataloader
    job = replace(job, recipes={**job.recipes, "weight_only_storage": "wider"})
    backend = OnnxRuntimeBackend(job)
    inputs = backend.facts().inputs
    shapes = weight_shapes(job)
    size = job.calibration.sampling_sizes[0]
    started = time.perf_counter()
    batches = open_dataloader(calibration, job.seed).head(size)
    blob = backend.calibrate((), ((batch.index, to_feed(batch.inputs, inputs)) for batch in batches))
    calibration_s = time.perf_counter() - started
    backend.set_statistics((), size, blob)
    evaluator = Evaluator(job.evaluation, inputs, backend.facts().outputs, job.seed)
    fp32 = evaluator.score(backend.load(None))
    sign = -1.0 if job.criterion.higher_is_better else 1.0
    figures = []
    for form in formats:
        for variant in variants:
            tuning = config_of(backend, variant, form, size)
            started = time.perf_counter()
            loaded = backend.load(tuning)
            seconds = time.perf_counter() - started
            value = evaluator.score(loaded).value
            loss = sign * (value - fp32.value) / abs(fp32.value)
            figures.append(Figure(variant.label, form.label, value, loss, weight_bytes(shapes, variant, form), seconds))
    return Result(config.name, next(iter(fp32.metrics), "accuracy"), fp32.value, calibration_s, tuple(figures))


def config_of(backend: OnnxRuntimeBackend, variant: Variant, form: Format, sampling_size: int) -> TuningConfig:
    """Every op in one format by one algorithm."""
    from distune.space.op_config import OpConfig, TensorConfig, TuningConfig

    weight = TensorConfig("int", variant.scheme, "per_channel", variant.algorithm, form.bits, form.group_size)
    option = OpConfig("weight_only", None, weight)
    recipes = tuple(sorted((*variant.recipes, ("weight_only_storage", "wider"))))
    ops = tuple((op.name, option) for op in backend.facts().capability.ops)
    return TuningConfig(ops, recipes, sampling_size if option.needs_calibration else 0)


def weight_shapes(job: TuningJob) -> list[tuple[int, int]]:
    """Input channels and outputs of every weight that can be quantized."""
    from distune.backends.onnxruntime.model import load_model
    from distune.backends.onnxruntime.preprocess import prepare
    from distune.backends.onnxruntime.weight_only import weight_of

    index = prepare(load_model(job.model)).index
    names = filter(None, (weight_of(index, node) for node in index.nodes.values()))
    return [(index.initializers[name].dims[0], index.initializers[name].dims[1]) for name in names]


def weight_bytes(shapes: Sequence[tuple[int, int]], variant: Variant, form: Format) -> int:
    """Bytes of integers, scales and zero points of all quantized weights, were the width stored as it is."""
    zero_point = 0 if variant.scheme == "sym" else 32 if variant.algorithm == "HQQ" else form.bits
    bits = 0
    for channels, outputs in shapes:
        groups = -(-channels // form.group_size) if form.group_size > 0 else 1
        bits += outputs * (channels * form.bits + groups * (32 + zero_point))
    return bits // 8


def misses(result: Result) -> list[str]:
    """The goals that were missed: GPTQ beats RTN, AWQ is never worse."""
    loss = {(figure.algorithm, figure.format): figure.loss for figure in result.figures}
    out = []
    for form in dict.fromkeys(figure.format for figure in result.figures):
        if not loss["GPTQ", form] < loss["RTN", form]:
            out.append(f"{form}: GPTQ {loss['GPTQ', form]:+.2%}, RTN {loss['RTN', form]:+.2%}")
        if not loss["AWQ", form] <= loss["RTN", form]:
            out.append(f"{form}: AWQ {loss['AWQ', form]:+.2%}, RTN {loss['RTN', form]:+.2%}")
    return out


def table(result: Result) -> str:
    """The figures for people: accuracy and loss by algorithm and format."""
    formats = list(dict.fromkeys(figure.format for figure in result.figures))
    cells = {(figure.algorithm, figure.format): figure for figure in result.figures}
    lines = [
        f"{result.config}: {result.metric}, fp32 {result.fp32:.4f}; calibrated in {result.calibration_s:.1f} s",
        "",
        f"{'':<24}" + "".join(f"{form:>20}" for form in formats) + f"{'seconds':>10}",
    ]
    for algorithm in dict.fromkeys(figure.algorithm for figure in result.figures):
        row = [cells[algorithm, form] for form in formats]
        shown = "".join(f"{f'{figure.accuracy:.4f} {figure.loss:+.2%}':>20}" for figure in row)
        lines.append(f"{algorithm:<24}{shown}{sum(figure.seconds for figure in row) / len(row):>10.2f}")
    sizes = "".join(f"{cells['RTN', form].weight_bytes / 1024:>16.0f} KiB" for form in formats)
    lines.append(f"{'weights, asym':<24}{sizes}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
