"""Time ONNX models one after the other: latency with an interval, and throughput of several instances at once."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distune.cli.whole import at_least

if TYPE_CHECKING:
    from distune.backends.base import Feed, InputInfo
    from distune.config.job import TuningJob


_DEFAULT = "(default: the configuration's, else 1)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, their data, and how many instances."""
    parser.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="an ONNX file in any precision, or the folder of a run"
    )
    parser.add_argument("--config", type=Path, help="YAML whose evaluation data the model is fed with; else zeros")
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help=f"samples of one run {_DEFAULT}")
    parser.add_argument(
        "--instances", type=at_least(1), default=1, metavar="N", help="processes that run at the same time"
    )
    parser.add_argument("--cores", type=at_least(1), metavar="N", help=f"threads of each instance {_DEFAULT}")
    parser.add_argument("--warmup", type=at_least(0), default=5, metavar="N", help="runs before anything is timed")
    parser.add_argument(
        "--iteration", type=_runs, default=-1, metavar="N", help="timed runs; -1 lets the interval decide"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")


def _runs(text: str) -> int:
    return -1 if text == "-1" else at_least(1)(text)


def main(arguments: argparse.Namespace) -> int:
    """Print the figures of every model."""
    from distune import benchmark
    from distune.api.model import any_onnx_model, onnx_inputs
    from distune.config import BenchmarkConfig

    models, job = [_model(given) for given in arguments.models], _job(arguments.config)
    performance = None if job is None else job.evaluation.performance
    batch_size = arguments.batch_size or (performance.batch_size if performance else 1)
    conf = BenchmarkConfig(
        warmup=arguments.warmup,
        iteration=arguments.iteration,
        cores_per_instance=arguments.cores or (performance.cores_per_instance if performance else 1),
        num_of_instance=arguments.instances,
    )
    figures: dict[str, Any] = {}
    for path in models:
        feed = _feed(job, onnx_inputs(any_onnx_model(str(path))), batch_size)
        result = benchmark.fit(str(path), conf, [(feed, None)], quiet=True)
        figures[str(path)] = asdict(result)
        if not arguments.json:
            print(f"{path}\n{result}", flush=True)
    if arguments.json:
        json.dump(figures, sys.stdout, indent=2)
        print()
    return 0


def _model(given: Path) -> Path:
    """The file that is to be timed."""
    from distune.errors import UsageError

    path = given / "best" / "model.onnx" if given.is_dir() else given
    if not path.is_file():
        what = "the run kept no ONNX model; name the file of a model" if given.is_dir() else "there is no such file"
        raise UsageError(f"{given}: {what}")
    return path


def _job(config: Path | None) -> TuningJob | None:
    if config is None:
        return None
    from distune.api.names import known_names
    from distune.config.load import load_config

    return load_config(config, [], known_names()).job()


def _feed(job: TuningJob | None, infos: tuple[InputInfo, ...], batch_size: int) -> Feed:
    from distune.data.loader import open_dataloader
    from distune.evaluation.feeds import first_feed, zeros_feed

    spec = None if job is None else job.evaluation.dataloader or job.calibration.dataloader
    if job is None or spec is None:
        print("zeros are fed: give --config with data where the time depends on the values", file=sys.stderr)
        return zeros_feed(infos, batch_size)
    return first_feed(open_dataloader(spec, job.seed), infos, batch_size)
