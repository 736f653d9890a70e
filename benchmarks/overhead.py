"""What tuning costs beside inference: the tuner's wall time against that of the inference it cannot do without.

The run is ``python -m distune run CONFIG`` in a process of its own. The floor is measured here with plain ONNX Runtime
on the same batches and threads: fp32 once over the evaluation data, the best model once for every judged trial, and
fp32 once over the calibration samples. Start-up (imports, loading model and data, checking that they fit) and the
latency interval are no part of judging and are shown apart.

    python benchmarks/overhead.py [--config launch/examples/resnet20.yaml] [--json overhead.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distune.backends.base import Feed
    from distune.config.job import TuningJob

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.3
FINISHED = (0, 3)
"""Exit codes of a run that judged what it wanted to: met, or not met."""


@dataclass(frozen=True)
class Floor:
    """Seconds of pure inference that no tuner can avoid."""

    baseline_s: float
    trials_s: float
    calibration_s: float

    @property
    def total_s(self) -> float:
        """All three."""
        return self.baseline_s + self.trials_s + self.calibration_s


@dataclass(frozen=True)
class Overhead:
    """The outcome of one measurement.

    Attributes:
        wall_s: Of the whole process, from its start to its end.
        phases: Seconds by phase; they add up to ``wall_s``.
        floor: Pure inference.
        ratio: Wall time without start-up and latency, over the floor.
        gross_ratio: Wall time over the floor.
    """

    config: str
    outcome: str
    judged: int
    samples: int
    threads: int
    wall_s: float
    phases: dict[str, float]
    floor: Floor
    ratio: float
    gross_ratio: float
    goal: float = GOAL


def main() -> int:
    """Run, measure the floor, print the table. Exit code 1 where the run failed or the goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "launch" / "examples" / "resnet20.yaml")
    parser.add_argument("--passes", type=int, default=3, help="passes of which the floor is the median")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="handed on to the run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distune-overhead-") as folder:
        measured = measure(given.config.resolve(), given.set, Path(folder), given.passes)
    print(table(measured))
    if given.json is not None:
        given.json.write_text(json.dumps({"benchmark": "overhead", **asdict(measured)}, indent=2) + "\n")
    return 0 if measured.ratio <= GOAL else 1


def measure(config: Path, overrides: Sequence[str], workspace: Path, passes: int) -> Overhead:
    """One run of ``config`` in ``workspace``, and its floor."""
    options = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "distune", "run", str(config), "--workspace", str(workspace), "--quiet", *options]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    wall_s = time.perf_counter() - started
    if done.returncode not in FINISHED:
        sys.exit(f"{' '.join(command)}\nended with code {done.returncode}:\n{done.stderr[-4000:]}")
    result = json.loads((workspace / "result.json").read_text())
    judged = [trial for trial in result["trials"] if trial["verdict"] in ("met", "not_met")]
    job = _job(config, overrides)
    floor, samples = _floor(job, (workspace / "best" / "model.onnx").read_bytes(), judged, passes)
    phases = _phases(result["timing"], wall_s)
    apart = phases["start-up"] + phases["latency interval"]
    return Overhead(
        config=config.name,
        outcome=result["outcome"],
        judged=len(judged),
        samples=samples,
        threads=1,
        wall_s=wall_s,
        phases=phases,
        floor=floor,
        ratio=(wall_s - apart) / floor.total_s,
        gross_ratio=wall_s / floor.total_s,
    )


def _phases(timing: dict[str, Any], wall_s: float) -> dict[str, float]:
    spent = {name: value or 0.0 for name, value in timing.items()}
    phases = {
        # The interpreter starts before and ends after the clock of the run.
        "start-up": spent["startup_s"] + wall_s - spent["total_s"],
        "baseline": spent["baseline_s"],
        "calibration": spent["calibration_s"],
        "quantize": spent["quantize_s"],
        "accuracy: inference": spent["inference_s"],
        "accuracy: data and metric": spent["accuracy_s"] - spent["inference_s"],
        "latency interval": spent["latency_s"],
    }
    return {**phases, "rest (journal, export, waiting)": wall_s - sum(phases.values())}


def _job(config: Path, overrides: Sequence[str]) -> TuningJob:
    from distune.cli.configuration import known_names
    from distune.config.load import load_config

    return load_config(config, list(overrides), known_names()).job()


def _floor(job: TuningJob, best: bytes, judged: Sequence[dict[str, Any]], passes: int) -> tuple[Floor, int]:
    """The floor, and the number of evaluation samples."""
    from distune.backends.onnxruntime.backend import OnnxRuntimeBackend
    from distune.data.loader import open_dataloader
    from distune.evaluation.feeds import to_feed

    if job.evaluation.dataloader is None or job.calibration.dataloader is None:
        sys.exit("the benchmark needs evaluation and calibration data in the configuration")
    inputs = OnnxRuntimeBackend(job).facts().inputs
    fp32 = Path(job.model.path).read_bytes()
    evaluation = [to_feed(b.inputs, inputs) for b in open_dataloader(job.evaluation.dataloader, job.seed)]
    if job.evaluation.iteration >= 0:
        evaluation = evaluation[: job.evaluation.iteration]
    # Sampling sizes that were tuned over were calibrated once each.
    sizes = {trial["sampling_size"] for trial in judged if trial["sampling_size"]}
    source = open_dataloader(job.calibration.dataloader, job.seed)
    calibration = [to_feed(batch.inputs, inputs) for size in sizes for batch in source.head(size)]
    floor = Floor(
        baseline_s=_inference_seconds(fp32, evaluation, passes),
        trials_s=_inference_seconds(best, evaluation, passes) * len(judged),
        calibration_s=_inference_seconds(fp32, calibration, passes),
    )
    return floor, sum(len(next(iter(feed.values()))) for feed in evaluation)


def _inference_seconds(model: bytes, feeds: Iterable[Feed], passes: int) -> float:
    """Median seconds of one pass over ``feeds``, by one thread that does not spin."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    prepared = [dict(feed) for feed in feeds]
    seconds = []
    for _ in range(passes):
        started = time.perf_counter()
        for feed in prepared:
            session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def table(measured: Overhead) -> str:
    """The figures for people."""
    floors = {
        "baseline": measured.floor.baseline_s,
        "calibration": measured.floor.calibration_s,
        "accuracy: inference": measured.floor.trials_s,
    }
    lines = [
        f"{measured.config}: {measured.outcome}, {measured.judged} trials judged on {measured.samples} samples, "
        f"{measured.threads} thread",
        "",
        f"{'phase':<34}{'tuner s':>10}{'floor s':>10}",
    ]
    for phase, seconds in measured.phases.items():
        floor = f"{floors[phase]:>10.3f}" if phase in floors else f"{'':>10}"
        lines.append(f"{phase:<34}{seconds:>10.3f}{floor}")
    lines += [
        f"{'all':<34}{measured.wall_s:>10.3f}{measured.floor.total_s:>10.3f}",
        "",
        f"without start-up and latency interval: {measured.ratio:.2f} x pure inference (goal {measured.goal} or less)",
        f"with them: {measured.gross_ratio:.2f} x",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
