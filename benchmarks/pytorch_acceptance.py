"""The examples in their PyTorch form: every strategy finds a model that keeps the accuracy, alone and over three ranks.

Each run is ``python -m distune run CONFIG`` in a process of its own, or ``mpirun -np 3`` of the same. It has to end
"met", and the winner must not depend on the number of ranks. Then one and the same config (every op with weights in
int8: activations uint8 asymmetric minmax, weights symmetric per channel; nothing else quantized) is scored by the
PyTorch and the ONNX Runtime backend on the same data: the two may differ by 0.3 points.

    DISTUNE_ASSETS=... python benchmarks/pytorch_acceptance.py [--only NAME] [--strategy NAME] [--ranks 1]
        [--limit 1000] [--no-runs] [--no-agreement] [--json pytorch_acceptance.json]

The exit code is 1 where a promise was missed. A finished run that the JSON file holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host import host

if TYPE_CHECKING:
    import torch

    from distune.backends.base import Backend
    from distune.config.job import TuningJob
    from distune.space.op_config import TuningConfig

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "launch" / "examples"
FINISHED = (0, 3, 4)
"""Exit codes of a run that came to an end: met, not met, budget spent."""

STRATEGIES = ("basic", "mse", "mse_v2", "hawq_v2")
RANKS = (1, 3)
POINTS = 0.3
LIMIT = "evaluation.accuracy.dataloader.dataset.Npz.limit"
LABEL = "quantization.calibration.dataloader.dataset.Npz.label"


@dataclass(frozen=True)
class Example:
    """A configuration ``pytorch_NAME.yaml`` and its twin ``NAME.yaml`` for ONNX Runtime.

    Attributes:
        limit: Samples of the evaluation set that a ``--limit`` leaves are at most these; 0 where it has no such key.
        loss: What ``hawq_v2`` differentiates, a function of this file or a reference.
        settings: What ``hawq_v2`` needs beside it.
    """

    name: str
    limit: int = 0
    loss: str = "torch.nn.functional:cross_entropy"
    settings: tuple[str, ...] = ()


EXAMPLES = (
    Example("resnet20", 5000),
    Example("digits"),
    Example("mbv3", 5000),
    Example("resnet32", 5000),
    Example("minilm", loss="in_batch_contrast", settings=(f"{LABEL}=scores",)),
    Example("chargpt", 435, loss="next_token"),
    Example("mobilenetv1", 5000),
)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        winner: Hash of the best model's config; empty where none met.
        int8: Ops with weights that run on integers in it, of ``ops``.
        ratio: Its latency against compiled fp32.
        trials: Models judged.
        seconds: Wall time of the process.
        error: The end of what it said where it did not come to an end.
    """

    example: str
    strategy: str
    ranks: int
    limit: int
    outcome: str
    accuracy: float | None = None
    baseline: float | None = None
    winner: str = ""
    int8: int | None = None
    ops: int | None = None
    ratio: float | None = None
    trials: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Agreement:
    """Accuracies of one config by two backends, and those of fp32."""

    example: str
    limit: int
    ops: int
    pytorch: float
    onnxruntime: float
    pytorch_fp32: float
    onnxruntime_fp32: float

    @property
    def points(self) -> float:
        """By how much they differ: points of accuracy, percent of a perplexity."""
        apart = abs(self.pytorch - self.onnxruntime)
        return 100 * apart / max(1.0, abs(self.onnxruntime_fp32))


def main() -> int:
    """Run everything that is asked for, print the table. Exit code 1 where a promise was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [example.name for example in EXAMPLES]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="all by default")
    parser.add_argument("--ranks", action="append", type=int, help="1 and 3 by default")
    parser.add_argument("--limit", type=int, default=0, help="samples to evaluate on; all by default")
    parser.add_argument("--no-runs", action="store_true", help="do nothing but compare with ONNX Runtime")
    parser.add_argument("--no-agreement", action="store_true", help="do not compare with ONNX Runtime")
    parser.add_argument("--json", type=Path, help="write the figures here, after every run; what it holds is kept")
    given = parser.parse_args()
    if "DISTUNE_ASSETS" not in os.environ:
        parser.error("set DISTUNE_ASSETS to the folder with models/ and data/")
    runs, agreements = _read(given.json)
    chosen = [example for example in EXAMPLES if not given.only or example.name in given.only]
    wanted = () if given.no_runs else _plan(chosen, given.strategy or STRATEGIES, given.ranks or RANKS)
    for example, strategy, ranks in wanted:
        limit = min(given.limit or example.limit, example.limit)
        found = next((run for run in runs if _key(run) == (example.name, strategy, ranks, limit)), None)
        if found is None:
            found = tune(example, strategy, ranks, limit)
            runs.append(found)
        print(_line(found), flush=True)
        _write(given.json, runs, agreements)
    for example in () if given.no_agreement else chosen:
        limit = min(given.limit or example.limit, example.limit)
        known = next((each for each in agreements if (each.example, each.limit) == (example.name, limit)), None)
        if known is None:
            known = agreement(example, limit)
            agreements.append(known)
        print(
            f"{known.example:12} same config: PyTorch {known.pytorch:.4f} (fp32 {known.pytorch_fp32:.4f}), "
            f"ONNX Runtime {known.onnxruntime:.4f} (fp32 {known.onnxruntime_fp32:.4f}), {known.points:.2f} points",
            flush=True,
        )
        _write(given.json, runs, agreements)
    names = [example.name for example in chosen]
    missed = misses([run for run in runs if run.example in names], [a for a in agreements if a.example in names])
    for goal in missed:
        print(f"MISSED: {goal}")
    return 1 if missed else 0


def misses(runs: Sequence[Run], agreements: Sequence[Agreement]) -> list[str]:
    """The promises that were not kept."""
    out = [f"{run.example}, {run.strategy}, {run.ranks} ranks: {run.outcome}" for run in runs if run.outcome != "met"]
    winners: dict[tuple[str, str, int], dict[int, str]] = {}
    for run in runs:
        if run.outcome == "met":
            winners.setdefault((run.example, run.strategy, run.limit), {})[run.ranks] = run.winner
    out += [
        f"{name}, {strategy}: another winner with {' and '.join(map(str, by_ranks))} ranks"
        for (name, strategy, _), by_ranks in winners.items()
        if len(set(by_ranks.values())) > 1
    ]
    return out + [
        f"{each.example}: {each.points:.2f} points from ONNX Runtime" for each in agreements if each.points > POINTS
    ]


def tune(example: Example, strategy: str, ranks: int, limit: int) -> Run:
    """Run an example with a strategy on some ranks."""
    overrides = [f"tuning.strategy.name={strategy}"]
    if limit:
        overrides.append(f"{LIMIT}={limit}")
    if strategy == "hawq_v2":
        loss = example.loss if ":" in example.loss else f"{Path(__file__).resolve()}:{example.loss}"
        overrides += [f"tuning.strategy.strategy_kwargs.hawq_v2_loss={loss}", *example.settings]
    head = Run(example.name, strategy, ranks, limit, "failed")
    with tempfile.TemporaryDirectory(prefix="distune-acceptance-") as folder:
        options = [word for override in overrides for word in ("--set", override)]
        launcher = ["mpirun", "-np", str(ranks)] if ranks > 1 else []
        config = FOLDER / f"pytorch_{example.name}.yaml"
        command = [*launcher, sys.executable, "-m", "distune", "run", str(config), "--workspace", folder, *options]
        started = time.perf_counter()
        done = subprocess.run([*command, "--quiet"], cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode not in FINISHED:
            return Run(**{**asdict(head), "seconds": seconds, "error": done.stderr[-2000:]})
        result = json.loads((Path(folder) / "result.json").read_text())
    best, latency = result["best"] or {}, (result["best"] or {}).get("latency") or {}
    return Run(
        example.name,
        strategy,
        ranks,
        limit,
        result["outcome"],
        best.get("accuracy"),
        result["baseline"]["accuracy"],
        best.get("config_hash", "") if result["outcome"] == "met" else "",
        best.get("ops_executed_int8"),
        best.get("ops_total"),
        latency.get("ratio"),
        len(result["trials"]),
        seconds,
    )


def agreement(example: Example, limit: int) -> Agreement:
    """Score one config by both backends."""
    values: dict[str, tuple[float, float, int]] = {}
    for framework, prefix in (("pytorch", "pytorch_"), ("onnxruntime", "")):
        job = _job(FOLDER / f"{prefix}{example.name}.yaml", [f"{LIMIT}={limit}"] if limit else [])
        values[framework] = _scored(job)
    (torch_int8, torch_fp32, ops), (ort_int8, ort_fp32, ort_ops) = values["pytorch"], values["onnxruntime"]
    if ops != ort_ops:
        sys.exit(f"{example.name}: {ops} ops with weights in PyTorch, {ort_ops} in ONNX Runtime")
    return Agreement(example.name, limit, ops, torch_int8, ort_int8, torch_fp32, ort_fp32)


def _scored(job: TuningJob) -> tuple[float, float, int]:
    """Accuracy of the one config and of fp32, and how many ops it quantizes."""
    from distune.backends.base import backend_class
    from distune.evaluation.accuracy import Evaluator

    backend = backend_class(job.model.framework)(job)
    facts = backend.facts()
    evaluator = Evaluator(job.evaluation, facts.inputs, facts.outputs, job.seed)
    config = _the_config(backend, job.calibration.sampling_sizes[0])
    _calibrate(backend, job, config.sampling_size or 0)
    fp32, int8 = (evaluator.score(backend.load(each)).value for each in (None, config))
    backend.close()
    return int8, fp32, len(config.quantized_ops)


def _the_config(backend: Backend, sampling_size: int) -> TuningConfig:
    from distune.space.op_config import FP32, TensorConfig, TuningConfig

    activation = TensorConfig("uint8", "asym", "per_tensor", "minmax")
    chosen = {}
    for op in backend.facts().capability.ops:
        fits = [
            option
            for option in op.options
            if op.has_weight
            and option.mode == "static"
            and option.activation == activation
            and option.weight is not None
            and (option.weight.dtype, option.weight.scheme, option.weight.granularity) == ("int8", "sym", "per_channel")
        ]
        chosen[op.name] = fits[0] if fits else FP32
    return TuningConfig(tuple(chosen.items()), sampling_size=sampling_size)


def _calibrate(backend: Backend, job: TuningJob, size: int) -> None:
    from distune.backends.statistics import merge
    from distune.data.loader import open_dataloader
    from distune.evaluation.feeds import to_feed

    if job.calibration.dataloader is None:
        sys.exit("the benchmark needs calibration data in the configuration")
    infos = backend.facts().inputs
    source = open_dataloader(job.calibration.dataloader, job.seed)
    backend.prepare_calibration(size)
    blob = backend.calibrate((), [(batch.index, to_feed(batch.inputs, infos)) for batch in source.head(size)])
    backend.set_statistics((), size, merge([blob]))


def _job(config: Path, overrides: Sequence[str]) -> TuningJob:
    from distune.api.names import known_names
    from distune.config.load import load_config

    return load_config(config, list(overrides), known_names()).job()


# ------------------------------------------------------------------------------------------------ losses for hawq_v2


def next_token(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [N, L, classes] and tokens [N, L]."""
    import torch

    return torch.nn.functional.cross_entropy(output.flatten(0, 1), target.flatten().long())


def in_batch_contrast(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How well each embedding [N, width] is told from the others of its batch; the labels say nothing of it."""
    import torch

    return torch.nn.functional.cross_entropy(20 * output @ output.T, torch.arange(len(output)))


# -------------------------------------------------------------------------------------------------------------- tables


def _plan(
    examples: Sequence[Example], strategies: Sequence[str], ranks: Sequence[int]
) -> Iterator[tuple[Example, str, int]]:
    """The first strategy on every example, which tells most, then the others on one example after another."""
    for example in examples:
        yield from ((example, strategies[0], each) for each in ranks)
    for example in examples:
        yield from ((example, strategy, each) for strategy in strategies[1:] for each in ranks)


def _key(run: Run) -> tuple[str, str, int, int]:
    return run.example, run.strategy, run.ranks, run.limit


def _line(run: Run) -> str:
    accuracy = "-" if run.accuracy is None else f"{run.accuracy:.4f}"
    baseline = "-" if run.baseline is None else f"{run.baseline:.4f}"
    ratio = "-" if run.ratio is None else f"{run.ratio:.2f}"
    said = f"  {run.error.strip().splitlines()[-1][:160]}" if run.error.strip() else ""
    return (
        f"{run.example:12} {run.strategy:8} np {run.ranks}  {run.outcome:12} {accuracy:>8} (fp32 {baseline})  "
        f"int8 {run.int8}/{run.ops}  latency {ratio}  {run.trials} trials  {run.seconds:.0f} s  {run.winner[:12]}{said}"
    )


def _read(path: Path | None) -> tuple[list[Run], list[Agreement]]:
    if path is None or not path.is_file():
        return [], []
    kept: dict[str, Any] = json.loads(path.read_text())
    finished = [Run(**each) for each in kept["runs"] if not each["error"]]
    return finished, [Agreement(**each) for each in kept["agreements"]]


def _write(path: Path | None, runs: Sequence[Run], agreements: Sequence[Agreement]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "missed": misses(runs, agreements),
        "runs": [asdict(run) for run in runs],
        "agreements": [asdict(each) for each in agreements],
    }
    path.write_text(json.dumps({"benchmark": "pytorch_acceptance", "host": host(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
