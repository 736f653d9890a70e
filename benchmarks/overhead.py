"""What tuning costs beside inference: the tuner's wall time against that of the inference it cannot do without.

The run is ``python -m distune run CONFIG`` in a process of its own. The floor is measured here with plain ONNX Runtime
on the same batches and threads: fp32 once over the evaluation data, the best model once for every judged trial, and
fp32 once over the calibration samples. Start-up (imports, loading model and data, checking that they fit) and the
latency interval are no part of judging and are shown apart.

    python benchmarks/overhead.py [--config launch/examples/resnet20.yaml] [--json overhead.json]

Where the time of one trial goes is another question, answered by

    python benchmarks/overhead.py --trials resnet20 mobilenetv1 minilm [--rows 1000] [--json trials.json]

which judges the candidates of the ranking stage as a worker does, and tells writing the graph, building the session and
scoring from inference, in seconds of the working thread. The first trial, which quantizes all weights, is shown apart.
"""

from __future__ import annotations

import argparse
import itertools
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

from host import host

if TYPE_CHECKING:
    from distune.backends.base import Feed
    from distune.config.job import TuningJob

ROOT = Path(__file__).resolve().parents[1]
GOAL = 1.3
NEEDED_GOAL = 1.15
NEEDED = ("baseline", "calibration", "accuracy: inference")
"""Phases that no run can do without."""

TRIAL_GOAL = 0.10
"""Share of a trial's time that is not inference."""

LIMIT = "evaluation.accuracy.dataloader.dataset.Npz.limit"
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
        needed_ratio: Wall time without start-up and latency, over baseline, calibration and inference as this very run
            did them: what it spends on anything else. Neighbours slow both sides.
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
    needed_ratio: float
    goal: float = GOAL


def main() -> int:
    """Run, measure the floor, print the table. Exit code 1 where the run failed or the goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "launch" / "examples" / "resnet20.yaml")
    parser.add_argument("--passes", type=int, default=3, help="passes of which the floor is the median")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="handed on to the run")
    parser.add_argument("--trials", nargs="+", metavar="NAME", help="split the trials of these examples instead")
    parser.add_argument("--rows", type=int, default=1000, help="with --trials: evaluation samples")
    parser.add_argument("--count", type=int, default=8, help="with --trials: how many")
    given = parser.parse_args()
    if given.trials:
        return _split_all(given.trials, given.rows, given.count, given.json)
    with tempfile.TemporaryDirectory(prefix="distune-overhead-") as folder:
        measured = measure(given.config.resolve(), given.set, Path(folder), given.passes)
    print(table(measured))
    if given.json is not None:
        given.json.write_text(
            json.dumps({"benchmark": "overhead", "host": host(), **asdict(measured)}, indent=2) + "\n"
        )
    return 0 if measured.ratio <= GOAL and measured.needed_ratio <= NEEDED_GOAL else 1


@dataclass(frozen=True)
class Split:
    """Milliseconds of one trial of ``name``: the first one, and the mean of those after it.

    Attributes:
        graph, session, inference, scoring: Writing the quantized graph, building the session, the model's runs, and
            data, metric and bounds around them (of an ``eval_func`` all but the model's runs).
        overhead: Share of the later trials that is not inference.
    """

    name: str
    trials: int
    first_graph: float
    graph: float
    session: float
    scoring: float
    inference: float
    overhead: float
    goal: float = TRIAL_GOAL


def _split_all(names: Sequence[str], rows: int, count: int, json_path: Path | None) -> int:
    found = []
    before = host()
    print(
        f"{'ms of a trial':<14}{'graph (first)':>14}{'graph':>8}{'session':>9}{'scoring':>9}{'inference':>11}"
        "  not inference"
    )
    for name in names:
        found.append(each := split(name, rows, count))
        print(
            f"{name:<14}{each.first_graph:>14.1f}{each.graph:>8.1f}{each.session:>9.1f}{each.scoring:>9.1f}"
            f"{each.inference:>11.1f}  {each.overhead:.1%} (goal {TRIAL_GOAL:.0%} or less)",
            flush=True,
        )
    if json_path is not None:
        content = {"benchmark": "trials", "host": before, "rows": rows, "trials": [asdict(each) for each in found]}
        json_path.write_text(json.dumps(content, indent=2) + "\n")
    return int(any(each.overhead > TRIAL_GOAL for each in found))


def split(name: str, rows: int, count: int) -> Split:
    """Where the time of the ranking stage's trials goes."""
    from distune.backends.base import RunnableModel
    from distune.backends.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeModel
    from distune.data.loader import open_dataloader
    from distune.evaluation.accuracy import Evaluator
    from distune.evaluation.criterion import Target
    from distune.evaluation.feeds import to_feed
    from distune.evaluation.verdict import Demand
    from distune.space.tuning_space import build_space
    from distune.strategies.default import default_config

    class Counted(RunnableModel):
        """Counts the seconds of a model's runs."""

        def __init__(self, model: OnnxRuntimeModel) -> None:
            self._model = model
            self.seconds = 0.0

        def predict(self, feed: Feed) -> Any:
            start = time.thread_time()
            outputs = self._model.predict(feed)
            self.seconds += time.thread_time() - start
            return outputs

        @property
        def native(self) -> Any:
            return self._model.native

        @property
        def size_bytes(self) -> int:
            return self._model.size_bytes

    job = _job(ROOT / "launch" / "examples" / f"{name}.yaml", [])
    if job.evaluation.dataloader is not None:
        job = _job(ROOT / "launch" / "examples" / f"{name}.yaml", [f"{LIMIT}={rows}"])
    if job.calibration.dataloader is None:
        sys.exit(f"{name} has no calibration data")
    backend = OnnxRuntimeBackend(job)
    facts, size = backend.facts(), job.calibration.sampling_sizes[0]
    head = open_dataloader(job.calibration.dataloader, job.seed).head(size)
    blob = backend.calibrate((), ((batch.index, to_feed(batch.inputs, facts.inputs)) for batch in head))
    backend.set_statistics((), size, blob)
    space = build_space(facts.capability, job.constraints, job.approach, job.recipes, job.calibration.sampling_sizes)
    base = default_config(space, size)
    groups = space.quantized_groups(base, "fp32")[:count]
    evaluator = Evaluator(job.evaluation, facts.inputs, facts.outputs, job.seed)
    baseline = evaluator.score_fp32(backend.load(None)) if evaluator.source else evaluator.score(backend.load(None))
    demand = Demand((("", Target(0.99 * baseline.value, True)),), None, True, "exact")
    taken: dict[str, list[float]] = {"graph": [], "session": [], "scoring": [], "inference": []}
    for config in (base, *(space.fallback(base, [group], "fp32") for group in groups)):
        times = [time.thread_time()]
        proto = backend._proto(config)
        times.append(time.thread_time())
        model = Counted(OnnxRuntimeModel(proto, 1))
        times.append(time.thread_time())
        evaluator.score(model, None, demand)
        times.append(time.thread_time())
        for part, seconds in zip(taken, (b - a for a, b in itertools.pairwise(times)), strict=False):
            taken[part].append(1e3 * seconds)
        taken["inference"].append(1e3 * model.seconds)
        taken["scoring"][-1] -= 1e3 * model.seconds
    mean = {part: statistics.mean(values[1:]) for part, values in taken.items()}
    return Split(
        name=name,
        trials=len(groups),
        first_graph=taken["graph"][0],
        overhead=1 - mean["inference"] / sum(mean.values()),
        **mean,
    )


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
        needed_ratio=(wall_s - apart) / sum(phases[name] for name in NEEDED),
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
    from distune.api.names import known_names
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
        f"over this run's own baseline, calibration and inference: {measured.needed_ratio:.2f} x (goal {NEEDED_GOAL})",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
