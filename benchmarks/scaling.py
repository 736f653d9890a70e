"""How tuning scales with the number of ranks: two real ones, up to 1,024 simulated ones, and 64 real ones that sleep.

*Real*: the same run on one rank and on two, in turns, next to the machine's own two-process floor: what two processes
that only infer get done, against one. *Simulated*: the real engine and strategies on the simulated transport, with the
durations that the real run recorded (each trial takes as long as one of those recorded: in the ranking stage as that of
the op at the same place), on a model of 300 ops of which a quarter must fall back; against Amdahl's law
for each strategy, whose serial part is its run on so many ranks that none ever waits for another, and against the limit
that no schedule passes: the number of ranks, and the time on one over the serial part. Strategies that think long, or
that ask one thing after the other, get a smaller model (``SIZES``), and ``conservative`` one of four op types.
``sigopt`` asks a service and is left out: it scales as ``bayesian`` does with batches of its ``parallel_bandwidth``.
*Master*: 64 ranks under ``mpirun`` whose trials sleep; what one trial costs rank 0.

    DISTUNE_ASSETS=... python benchmarks/scaling.py [--part real] [--json benchmarks/results/scaling.json]

The simulated part needs the recorded durations: those of the file named by ``--json``, where ``real`` is not run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from host import host

if TYPE_CHECKING:
    from distune.engine.forecast import Durations, Forecast
    from distune.trial.messages import Inspection

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("real", "simulated", "master")
CONFIG = ROOT / "launch" / "examples" / "mobilenetv1.yaml"
SETTINGS = (
    "evaluation.accuracy.dataloader.dataset.Npz.limit=2000",
    "evaluation.accuracy.dataloader.batch_size=50",
    "quantization.recipes={fast_bias_correction: false, cross_layer_equalization: false, adaround: false}",
    "tuning.exit_policy.timeout=100000",
    "tuning.exit_policy.max_trials=60",
    "tuning.strategy.strategy_kwargs={op_type_wise_trials: 3}",
    "tuning.objective=modelsize",
    "tuning.ranking=full",
    "tuning.refine_trials=0",
)
"""A run that goes on after success: default, op types, all 27 groups one by one, accumulated."""

DATA = {"samples": 2000, "batch_size": 50}
"""The evaluation set of the real run."""

RANKING = "instance-wise fallback"
COUNTS = tuple(2**power for power in range(11))
UNBOUNDED = 2048
OPS = 300


@dataclass(frozen=True)
class Size:
    """What a strategy is simulated on.

    Attributes:
        trials: The budget. Samplers do not propose fallback, so none of their trials meets, and they spend it.
        types: Op types that the ops are of, in turns; those that must fall back are all of the first.
        chain: What waits for what, however many ranks there are.
    """

    chain: str
    ops: int = OPS
    trials: int = 3 * OPS
    types: tuple[str, ...] = ("Conv",)


FALLEN = "the shortest prefix of the fallback order is found in rounds, each of which narrows what the one before left"
BATCHES = "a batch is asked for when all answers to the one before are there; its size is a setting (batch_size)"
SIZES = {
    "basic": Size(f"the default, the op types, the groups one by one, and then {FALLEN}"),
    "mse": Size(f"the default, the op types, the probe of all groups, and then {FALLEN}"),
    "mse_v2": Size("one group falls back after the other, each after a probe of all that are left", 100, 300),
    "hawq_v2": Size(f"the default, the probe of the batches, and then {FALLEN}"),
    "conservative": Size(
        "one op type after the other, on top of those that were kept", types=("Conv", "MatMul", "Gemm", "Add")
    ),
    "exhaustive": Size(BATCHES),
    "random": Size(BATCHES, 60, 180),
    "tpe": Size(BATCHES, 60, 180),
    "bayesian": Size(BATCHES, 8, 16),
    "knapsack": Size("the default, parts of the model, and then rounds of mixes, each from a model of all answers"),
}
"""``mse_v2`` judges one trial at a time and asks for a probe of all ops before each; a sampler chooses as many options
as there are ops for each trial, and its model is fitted to all trials so far; a Gaussian process takes seconds."""

KWARGS = {"hawq_v2": {"hawq_v2_loss": "synthetic:loss"}}
GAIN = 1.1
"""More ranks are worth it while twice as many are at least so much faster."""


@dataclass(frozen=True)
class Point:
    """One simulated run.

    Attributes:
        seconds: From the end of start-up to the end of the run.
        speedup: Against one rank.
        amdahl: By Amdahl's law. It takes the serial part as work that nothing runs beside. That part is the longest
            chain of trials, most of which have others beside them, so that a speed-up may be above it.
        limit: What no schedule passes.
        busy: Share of the ranks' time that is work.
        ranking_efficiency: Of the stage that ranks ops: its time on one rank, over ``ranks`` times its time here. Above
            1 where idle ranks began with it during the stages before.
    """

    ranks: int
    seconds: float
    speedup: float
    amdahl: float
    limit: float
    busy: float
    ranking_efficiency: float | None


@dataclass(frozen=True)
class Scaling:
    """One strategy.

    Attributes:
        ops: Of the model.
        stages: Stages that are judged one after the other.
        widest: Trials of the widest of them.
        own_ms: Processor milliseconds that engine and strategy themselves take a trial on this machine, simulator
            included: median of the runs on up to 4 ranks. They are no part of the simulated seconds.
        chain: What waits for what, however many ranks there are.
        serial_s: Time on ranks without number.
        saturates_at: Ranks of which twice as many bring less than 10%.
        because: The stages that make up the time there, the longest first, with seconds.
    """

    strategy: str
    ops: int
    trials: int
    stages: int
    widest: int
    own_ms: float
    chain: str
    serial_s: float
    saturates_at: int | None
    because: tuple[tuple[str, float], ...]
    points: tuple[Point, ...]


def main() -> int:
    """Run the parts, print the figures. Exit code 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="one of them; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="real runs on each number of ranks")
    parser.add_argument(
        "--only", action="append", choices=tuple(SIZES), help="strategies to simulate; others in the file are kept"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, after each part; others there are kept")
    given = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "scaling"}
    if given.json is not None and given.json.is_file():
        figures = json.loads(given.json.read_text())
    missed: list[str] = []
    for part in given.part or PARTS:
        if part == "real":
            figures["host"] = host()
            figures[part], goals = real(given.rounds)
        elif part == "simulated":
            if "real" not in figures:
                parser.error("no recorded durations: run the part 'real' first, or name a file that has it")
            before = figures.get(part, {})
            figures[part], goals = simulated(figures["real"]["recorded"], given.only or tuple(SIZES))
            if given.only:
                figures[part] = _joined(before, figures[part])
        else:
            figures[part], goals = master()
        missed += goals
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(figures, indent=2) + "\n")
    for goal in missed:
        print(f"MISSED: {goal}")
    return 1 if missed else 0


# ------------------------------------------------------------------------------------------------------------- real


def real(rounds: int) -> tuple[dict[str, Any], list[str]]:
    """One rank and two in turns, and the floor of the machine before each turn."""
    floors: list[float] = []
    ratios: list[float] = []
    untimed: list[float] = []
    ranking: list[float] = []
    walls: dict[int, list[float]] = {1: [], 2: []}
    quiet: dict[int, list[float]] = {1: [], 2: []}
    recorded: dict[str, Any] = {}
    for number in range(rounds):
        floors.append(floor())
        seconds: dict[int, float] = {}
        ranked: dict[int, float] = {}
        for ranks in (1, 2) if number % 2 == 0 else (2, 1):
            result = _tuned(ranks)
            timing = result["timing"]
            seconds[ranks] = timing["total_s"] - timing["startup_s"]
            ranked[ranks] = sum(s["seconds"] for s in result["stages"] if s["name"].startswith(RANKING))
            walls[ranks].append(seconds[ranks])
            quiet[ranks].append(timing["latency_s"])
            if ranks == 1:
                recorded = _recorded(result)
        ratios.append(seconds[1] / seconds[2])
        untimed.append((seconds[1] - quiet[1][-1]) / (seconds[2] - quiet[2][-1]))
        ranking.append(ranked[1] / ranked[2] if ranked[2] else float("nan"))
        print(
            f"round {number + 1}: floor {floors[-1]:.2f} x, run {seconds[1]:.1f} s on one rank, {seconds[2]:.1f} s on "
            f"two: {ratios[-1]:.2f} x, {untimed[-1]:.2f} x without measuring latency; ranking stage "
            f"{ranking[-1]:.2f} x",
            flush=True,
        )
    floors.append(floor())
    # Each round against the mean of the floors before and after it: the machine's other load comes and goes.
    near = [(before + after) / 2 for before, after in pairwise(floors)]
    whole, without, stage = (
        statistics.median(ratio / limit for ratio, limit in zip(found, near, strict=True))
        for found in (ratios, untimed, ranking)
    )
    goal = 0.95
    print(
        f"two ranks against one, over the floor: {without:.2f} without the latency measurement, in which all but one "
        f"hold still, {whole:.2f} with it (ranking stage {stage:.2f}), goal {goal}"
    )
    figures = {
        "config": CONFIG.name,
        "settings": SETTINGS,
        "floors": floors,
        "seconds": walls,
        "latency_seconds": quiet,
        "speedups": ratios,
        "speedups_without_latency": untimed,
        "ranking_speedups": ranking,
        "over_floor": whole,
        "without_latency_over_floor": without,
        "ranking_over_floor": stage,
        "goal": goal,
        "recorded": recorded,
    }
    return figures, [] if without >= goal else [f"two ranks over the floor: {without:.2f}, goal {goal}"]


def _tuned(ranks: int) -> dict[str, Any]:
    """The result of a run."""
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    with tempfile.TemporaryDirectory(prefix="distune-scaling-") as folder:
        command = [sys.executable, "-m", "distune", "run", str(CONFIG), "--workspace", folder, "--quiet"]
        done = subprocess.run([*command, "--np", str(ranks), *options], cwd=ROOT, capture_output=True, text=True)
        if done.returncode not in (0, 3, 4):
            sys.exit(f"{' '.join(command)}\nended with code {done.returncode}:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
        return found


def _recorded(result: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the pieces of work of a run on one rank; ``trials_s`` in the order of the graph."""
    timing = result["timing"]
    trials = [trial for trial in result["trials"] if trial["verdict"] in ("met", "not_met")]
    place = {group["name"]: at for at, group in enumerate(result["groups"])}
    ranking = sorted((t for t in trials if t["stage"].startswith(RANKING)), key=lambda trial: place[trial["label"]])
    ranked = [trial["end_s"] - trial["start_s"] for trial in ranking]
    quantize_s = timing["quantize_s"] / len(trials)
    measured = sum(trial["latency"] is not None for trial in trials)
    return {
        "startup_s": timing["startup_s"],
        "baseline_s": timing["baseline_s"],
        "calibration_s": timing["calibration_s"],
        "sampling_size": trials[0]["sampling_size"],
        "quantize_s": quantize_s,
        "latency_s": timing["latency_s"] / max(1, measured),
        "trials_s": ranked,
    }


_LOOP = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal((50, 3, 32, 32), np.float32)}
session.run(None, feed)
print("ready", flush=True)
sys.stdin.readline()
end, done = time.perf_counter() + float(sys.argv[2]), 0
while time.perf_counter() < end:
    session.run(None, feed)
    done += 1
print(done, flush=True)
"""


def floor(seconds: float = 4.0) -> float:
    """How much more two processes that infer get done at once than one."""
    model = Path(os.environ["DISTUNE_ASSETS"]) / "models" / "mobilenetv1_cifar10.onnx"
    one = [_loops(model, 1, seconds)]
    two = _loops(model, 2, seconds)
    one.append(_loops(model, 1, seconds))
    return two / statistics.mean(one)


def _loops(model: Path, count: int, seconds: float) -> int:
    """Batches that ``count`` processes infer together."""
    command = [sys.executable, "-c", _LOOP, str(model), str(seconds)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    done = 0
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        done += int(process.communicate()[0])
    return done


# -------------------------------------------------------------------------------------------------------- simulated


def simulated(recorded: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Every strategy on every number of ranks."""
    durations = _durations(recorded)
    found = []
    for name in names:
        found.append(one := scaling(name, durations))
        print(
            f"\n{one.strategy}: {one.ops} ops, {one.trials} trials in {one.stages} stages of {one.widest} at most, at "
            f"least {one.serial_s:.1f} s however many ranks; {one.own_ms:.1f} ms of its own a trial",
            flush=True,
        )
        print(f"{'ranks':>6}{'seconds':>10}{'speed-up':>10}{'Amdahl':>8}{'limit':>8}{'busy':>7}{'ranking stage':>15}")
        for p in one.points:
            ranking = "" if p.ranking_efficiency is None else f"{p.ranking_efficiency:.2f}"
            print(
                f"{p.ranks:>6}{p.seconds:>10.1f}{p.speedup:>10.1f}{p.amdahl:>8.1f}{p.limit:>8.1f}"
                f"{p.busy:>7.2f}{ranking:>15}"
            )
        print(f"saturates at {one.saturates_at} ranks: " + ", ".join(f"{n} {s:.1f} s" for n, s in one.because))
    goal = 0.9
    basic = next((one for one in found if one.strategy == "basic"), None)
    at_64 = None if basic is None else ranking_alone(durations, 64)
    alike = None if basic is None else ranking_alone(replace(durations, spread=(), by_place=()), 64)
    figures = {
        "ops": OPS,
        "strategies": [asdict(one) for one in found],
        "ranking_at_64": at_64,
        "ranking_at_64_if_trials_are_alike": alike,
        "goal": goal,
    }
    if at_64 is not None:
        print(
            f"\nranking stage of basic at 64 ranks, {OPS} ops, nothing run ahead: {at_64:.3f}, "
            f"{alike:.3f} if trials are alike; goal {goal}"
        )
    return figures, [f"ranking stage at 64 ranks: {at_64:.3f}"] if at_64 is not None and at_64 < goal else []


def _joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Figures of some strategies put in among those of a file, in the order of ``SIZES``."""
    found = {one["strategy"]: one for one in (*before.get("strategies", ()), *now["strategies"])}
    known = {name: value for name, value in now.items() if value is not None}
    return {**before, **known, "strategies": [found[name] for name in SIZES if name in found]}


def ranking_alone(durations: Durations, ranks: int) -> float:
    """Efficiency of the ranking stage of ``basic`` where no rank runs ahead of the stages."""
    one, many = (_ranking_seconds(_simulate("basic", durations, count, "none")) for count in (1, ranks))
    return one / (ranks * many)


def _durations(recorded: dict[str, Any]) -> Durations:
    from distune.engine.forecast import Durations

    trials: list[float] = recorded["trials_s"]
    mean = statistics.mean(trials)
    return Durations(
        startup_s=recorded["startup_s"],
        baseline_s=recorded["baseline_s"],
        calibrate_s=recorded["calibration_s"] / recorded["sampling_size"],
        quantize_s=recorded["quantize_s"],
        evaluate_s=mean - recorded["quantize_s"],
        latency_s=recorded["latency_s"],
        probe_s=(mean - recorded["quantize_s"]) / 10,  # one batch of ten
        spread=tuple(seconds / mean for seconds in trials),
        by_place=tuple(seconds / mean for seconds in trials),
    )


def scaling(strategy: str, durations: Durations) -> Scaling:
    """One strategy on every number of ranks."""
    runs: dict[int, Forecast] = {}
    own: list[float] = []
    for ranks in (*COUNTS, UNBOUNDED):
        start = time.process_time()
        runs[ranks] = _simulate(strategy, durations, ranks)
        if ranks <= 4:
            own.append((time.process_time() - start) / runs[ranks].trials)
    seconds = {ranks: run.seconds - durations.startup_s for ranks, run in runs.items()}
    one, serial = seconds[1], seconds[UNBOUNDED]
    ranked = {ranks: _ranking_seconds(run) for ranks, run in runs.items()}
    points = [
        Point(
            ranks,
            seconds[ranks],
            one / seconds[ranks],
            one / (serial + (one - serial) / ranks),
            min(ranks, one / serial),
            runs[ranks].busy,
            ranked[1] / (ranks * ranked[ranks]) if ranked[ranks] else None,
        )
        for ranks in COUNTS
    ]
    pairs = pairwise(COUNTS)
    saturated = next((ranks for ranks, twice in pairs if seconds[ranks] < GAIN * seconds[twice]), None)
    last = runs[saturated or COUNTS[-1]]
    stages: dict[str, float] = {}
    for stage in last.stages:
        name = re.sub(r"\s*\b\d+\b", "", stage.name.partition(",")[0])
        name = re.sub(r"^(revert of|op type) .*", r"\1", name)
        stages[name] = stages.get(name, 0.0) + stage.seconds
    rest = last.seconds - durations.startup_s - sum(stages.values())
    parts = {**stages, "baseline, calibration, probes, latency, export": rest}
    because = sorted(parts.items(), key=lambda item: -item[1])[:4]
    return Scaling(
        strategy,
        SIZES[strategy].ops,
        runs[1].trials,
        len(runs[1].stages),
        max(stage.judged for stage in runs[1].stages),
        1000 * statistics.median(own),
        SIZES[strategy].chain,
        serial,
        saturated,
        tuple(because),
        tuple(points),
    )


def _simulate(
    strategy: str, durations: Durations, ranks: int, isolation: Literal["process", "none"] = "process"
) -> Forecast:
    """Simulate a run. Without isolation nothing runs ahead of the stages."""
    from distune.config import job as j
    from distune.engine.forecast import forecast

    size = SIZES[strategy]
    job = j.TuningJob(
        j.ModelSpec("onnxruntime", "synthetic.onnx"),
        calibration=j.CalibrationSpec(None, (200,)),
        criterion=j.CriterionSpec("relative", 0.01),
        evaluation=j.EvaluationSpec(eval_func="synthetic:score"),
        exit_policy=j.ExitPolicy(0.0, size.trials, False),
        strategy=j.StrategySpec(strategy, KWARGS.get(strategy, {})),
        isolation=isolation,
        quant_level=0 if strategy == "conservative" else 1,
    )
    return forecast(job, _synthetic(size), durations, "hard", ranks)


def _synthetic(size: Size) -> Inspection:
    """A model of ops each of which falls back by itself."""
    from distune.space.capability import Capability, ModeOptions, OpInfo, TensorOptions
    from distune.space.op_config import FP32
    from distune.trial.messages import Inspection

    activation = TensorOptions(("uint8", "int8"), ("asym", "sym"), algorithms=("minmax", "percentile"))
    weight = TensorOptions(("int8",), granularities=("per_channel", "per_tensor"))
    options = (*ModeOptions("static", activation, weight).expand(), FP32)
    types = islice(cycle(size.types), size.ops)
    infos = [OpInfo(f"conv{index}", kind, options, f"conv{index}", has_weight=True) for index, kind in enumerate(types)]
    return Inspection(Capability(tuple(infos)), 1000, {}, {}, digest="synthetic", data=DATA, fp32_in_shards=True)


def _ranking_seconds(run: Forecast) -> float:
    return sum(stage.seconds for stage in run.stages if stage.name.startswith((RANKING, "impact of", "output error")))


# ----------------------------------------------------------------------------------------------------------- master


def master() -> tuple[dict[str, Any], list[str]]:
    """The benchmark of dispatching, on 64 ranks: trials that sleep, and answers as fast as the master can take them."""
    goal = 0.3
    figures = {**_dispatched(500, 2.0), "goal_ms": goal, "loaded": _dispatched(6000, 0.0)["layers"]}
    worst, loaded = (max(layer["median_ms"] for layer in figures[name]) for name in ("layers", "loaded"))
    print(f"master's cost of a trial, 64 ranks: {worst:.3f} ms, under full load {loaded:.3f} ms, goal {goal} ms")
    return figures, [f"master's cost of a trial: {worst:.3f} ms"] if worst > goal else []


def _dispatched(trials: int, sleep_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="distune-scaling-") as folder:
        path = Path(folder) / "dispatch.json"
        script = Path(__file__).resolve().parent / "dispatch.py"
        options = ["--np", "64", "--trials", str(trials), "--sleep", str(sleep_s), "--json", str(path)]
        done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
        if not path.is_file():
            sys.exit(f"{script.name} ended with code {done.returncode}:\n{done.stdout}\n{done.stderr[-4000:]}")
        print(done.stdout)
        figures: dict[str, Any] = json.loads(path.read_text())
        return figures


if __name__ == "__main__":
    sys.exit(main())
