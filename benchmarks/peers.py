"""distune next to INC 2.6 and NNCF: the same models, data, evaluation, criterion (relative 1%), and one core each.

Makes an environment of its own for each peer in ``--cache``, outside the project. The tuners run in turns; one that
takes longer than ``--patience`` is stopped and shown as such. All final models are then judged and timed by one script
in the ONNX Runtime of this environment. *Time* is that to the accepted model, without the start of the interpreter,
imports and loading, and without the latency interval that distune alone measures (both are shown apart). Where other
work shares the machine the wall clock says little: processor seconds are shown beside it, and all ratios are made of
those (of a peer measured around its call; of distune, which has several processes, its share of the run's). The
*floor* is pure inference: fp32 once, the calibration data once, the accepted model once.

    DISTUNE_ASSETS=... python benchmarks/peers.py [--case resnet20] [--tuner "inc basic"] [--json peers.json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from host import host

HERE = Path(__file__).resolve().parent
WORKER = HERE / "peers_worker.py"
EXAMPLES = HERE.parent / "launch" / "examples"
PACKAGES = {
    "inc": ("neural-compressor==2.6", "onnx==1.16.2", "onnxruntime==1.18.1", "numpy<2", "six", "setuptools<81"),
    "nncf": ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1"),
}
CASES = {
    "resnet20": ("distune", "inc basic", "nncf"),
    "minilm": ("distune", "distune auto", "inc basic", "nncf"),
    "mobilenetv1": ("distune", "inc auto", "nncf", "inc mse_v2", "inc basic"),
}
SETTINGS = {"mobilenetv1": ["evaluation.accuracy.dataloader.dataset.Npz.limit=1000"]}
LATENCY_GOALS = {
    ("resnet20", "distune"): {"b1": 0.45},
    ("mobilenetv1", "distune"): {"b1": 0.42},
    ("minilm", "distune"): {"b1": 0.60, "b32": 0.60},
    ("minilm", "distune auto"): {"b1": 0.38},
}
FLOOR_GOALS = {"resnet20": 1.2, "minilm": 3.0, "mobilenetv1": 3.0}
PEER_GOALS = {
    ("resnet20", "inc"): 1.0,
    ("resnet20", "nncf"): 1.0,
    ("minilm", "inc"): 4.0,
    ("minilm", "nncf"): 1.0,
    ("mobilenetv1", "inc"): 8.0,
    ("mobilenetv1", "nncf"): 4.0,
}


def main() -> int:
    """Tune, judge, print. Exit code 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tuners = sorted({tuner for each in CASES.values() for tuner in each})
    cache = os.environ.get("DISTUNE_PEERS_CACHE") or Path.home() / ".cache" / "distune-peers"
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--tuner", action="append", choices=tuners)
    parser.add_argument("--rounds", type=int, default=1, help="turns; what took more than a minute is not repeated")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds after which a tuner is stopped")
    parser.add_argument("--cache", type=Path, default=Path(cache), help="folder of the peers' environments")
    parser.add_argument("--json", type=Path, help="write the figures here after each case; other cases there are kept")
    given = parser.parse_args()
    if "DISTUNE_ASSETS" not in os.environ:
        parser.error("set DISTUNE_ASSETS to the folder with models/ and data/")
    figures: dict[str, Any] = {"benchmark": "peers", "cases": {}}
    if given.json is not None and given.json.is_file():
        figures = json.loads(given.json.read_text())
    figures["host"], figures["packages"] = host(), PACKAGES
    missed: list[str] = []
    for case in given.case or CASES:
        chosen = [tuner for tuner in CASES[case] if not given.tuner or tuner in given.tuner]
        with tempfile.TemporaryDirectory(prefix="distune-peers-") as folder:
            found = compare(case, chosen, given.rounds, given.patience, given.cache, Path(folder))
        kept = figures["cases"].get(case, {}).get("tuners", {})
        figures["cases"][case] = {**found, "tuners": {**kept, **found["tuners"]}}
        print(table(case, figures["cases"][case]), flush=True)
        missed += misses(case, figures["cases"][case])
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(figures, indent=2) + "\n")
    for goal in missed:
        print(f"MISSED: {goal}")
    return 1 if missed else 0


def compare(
    case: str, tuners: Sequence[str], rounds: int, patience: float, cache: Path, folder: Path
) -> dict[str, Any]:
    """Every tuner's turns on one case, and the judge's word on their models."""
    turns: dict[str, list[dict[str, Any]]] = {tuner: [] for tuner in tuners}
    for number in range(rounds):
        for tuner in tuners:
            if any(turn.get("stopped") or turn["seconds"] > 60 for turn in turns[tuner]):
                continue
            out = folder / f"{tuner.replace(' ', '-')}-{number}"
            out.mkdir()
            turn = _distune(case, tuner, out, patience) if tuner.startswith("distune") else None
            turns[tuner].append(turn or _peer(case, tuner, out, patience, cache))
    paths = {tuner: turn[-1]["model"] for tuner, turn in turns.items() if turn[-1].get("model")}
    judged = _judge(case, list(paths.values()), folder)
    found: dict[str, Any] = {}
    for tuner, done in turns.items():
        best = min(done, key=lambda turn: float(turn.get("processor_s", turn["seconds"])))
        model = judged["models"].get(paths.get(tuner), {})
        found[tuner] = {**best, **model, "turns": len(done)}
        found[tuner].pop("model", None)
        if model and "processor_s" in best:
            floor = judged["floor"]["baseline_s"] + judged["floor"]["calibration_s"] + model["accepted_s"]
            found[tuner]["floor_s"] = floor
            found[tuner]["over_floor"] = best["processor_s"] / floor
    return {
        "fp32_accuracy": judged["fp32_accuracy"],
        "floor": judged["floor"],
        "judge": judged["onnxruntime"],
        "tuners": found,
    }


def _distune(case: str, tuner: str, out: Path, patience: float) -> dict[str, Any]:
    options = list(SETTINGS.get(case, []))
    if tuner.endswith(" auto"):
        options.append("quantization.approach=post_training_auto_quant")
    words = [word for option in options for word in ("--set", option)]
    config = EXAMPLES / f"{case}.yaml"
    command = [sys.executable, "-m", "distune", "run", str(config), "--workspace", str(out), "--quiet", *words]
    wall, processor, stopped, log = _run(command, out, patience)
    if stopped:
        return {"seconds": wall, "stopped": True}
    path = out / "result.json"
    if not path.is_file():
        sys.exit(f"{' '.join(command)} left no result:\n{log[-3000:]}")
    result = json.loads(path.read_text())
    timing = result["timing"]
    own = timing["total_s"] - timing["startup_s"] - timing["latency_s"]
    samples = result["baseline"].get("samples") or max((t["samples"] or 0 for t in result["trials"]), default=0)
    seen = [(t["samples"] or 0) / samples if samples else 1.0 for t in result["trials"]]
    model = out / "best" / "model.onnx"
    return {
        "seconds": own,
        # Start-up and latency are not told apart in processor seconds: taken at the whole run's share of a core.
        "processor_s": own * min(1.0, processor / wall),
        "apart": {"start-up": wall - timing["total_s"] + timing["startup_s"], "latency": timing["latency_s"]},
        "outcome": result["outcome"],
        "trials": len(result["trials"]),
        "evaluations": 1 + sum(seen),
        "onnxruntime": result["versions"].get("onnxruntime"),
        "timing": timing,
        "model": str(model) if model.is_file() else None,
    }


def _peer(case: str, tuner: str, out: Path, patience: float, cache: Path) -> dict[str, Any]:
    peer, _, strategy = tuner.partition(" ")
    command = [str(_environment(peer, cache)), str(WORKER), peer, case, "--out", str(out)]
    wall, _, stopped, log = _run([*command, "--strategy", strategy or "basic"], out, patience)
    if stopped:
        return {"seconds": wall, "stopped": True}
    facts = out / "facts.json"
    if not facts.is_file():
        return {"seconds": wall, "failed": log.strip().splitlines()[-1:]}
    model = out / "model.onnx"
    return {**json.loads(facts.read_text()), "model": str(model) if model.is_file() else None}


def _judge(case: str, models: Sequence[str], folder: Path) -> dict[str, Any]:
    words = [word for model in models for word in ("--model", model)]
    _, _, _, log = _run([sys.executable, str(WORKER), "judge", case, "--out", str(folder), *words], folder, 3600.0)
    if not (folder / "facts.json").is_file():
        sys.exit(f"the judge failed:\n{log[-3000:]}")
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return found


def _environment(peer: str, cache: Path) -> Path:
    """The interpreter of a peer's environment, which is made where it is not there."""
    folder = cache / peer
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=True)
        done.write_text("\n".join(PACKAGES[peer]) + "\n")
    return python


def _run(command: Sequence[str], folder: Path, patience: float) -> tuple[float, float, bool, str]:
    """Wall and processor seconds of a command on one core, whether it had to be stopped, and what it printed."""
    core = max(os.sched_getaffinity(0))
    log = folder / "log.txt"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        stopped = False
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            stopped = True
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, processor, stopped, log.read_text(errors="replace")


def table(case: str, found: dict[str, Any]) -> str:
    """One case for people."""
    lines = [
        f"\n{case}: fp32 {found['fp32_accuracy']:.4f}, judged in ONNX Runtime {found['judge']}",
        f"{'tuner':<14}{'wall s':>9}{'CPU s':>9}{'/ floor':>9}{'evals':>7}{'accuracy':>10}{'met':>5}{'int8':>6}"
        f"{'latency b1':>12}{'b32':>7}",
    ]
    for tuner, row in found["tuners"].items():
        head = f"{tuner:<14}{row['seconds']:>9.1f}"
        if row.get("stopped"):
            lines.append(f"{head}  stopped")
        elif "accuracy" not in row:
            lines.append(f"{head}{row.get('processor_s', 0.0):>9.1f}  no model {row.get('failed', '')}")
        else:
            lines.append(
                f"{head}{row['processor_s']:>9.1f}{row['over_floor']:>9.2f}{row['evaluations']:>7.1f}"
                f"{row['accuracy']:>10.4f}{'yes' if row['met'] else 'no':>5}{row['ops_int8']:>6}"
                f"{row['latency']['b1'][0]:>12.2f}{row['latency']['b32'][0]:>7.2f}"
            )
    return "\n".join(lines)


def misses(case: str, found: dict[str, Any]) -> list[str]:
    """The goals that distune does not reach."""
    rows, out = found["tuners"], []
    ours = rows.get("distune", {})
    if ours.get("over_floor", 0.0) > FLOOR_GOALS[case]:
        out.append(f"time over floor {ours['over_floor']:.2f}, goal {FLOOR_GOALS[case]}")
    for (name, tuner), goals in LATENCY_GOALS.items():
        row = rows.get(tuner, {})
        for batch, goal in goals.items() if name == case and "latency" in row else ():
            ratio = row["latency"][batch]
            if ratio[1] > goal:  # its interval lies above
                out.append(f"{tuner}: latency {batch} {ratio[0]:.2f}, goal {goal}")
    for (name, peer), goal in PEER_GOALS.items():
        theirs = [row["processor_s"] for tuner, row in rows.items() if tuner.startswith(peer) and row.get("met")]
        if name == case and theirs and "processor_s" in ours and min(theirs) < goal * ours["processor_s"]:
            out.append(f"{min(theirs) / ours['processor_s']:.1f} x less time than {peer}, goal {goal:g} x")
    return [f"{case}: {text}" for text in out]


if __name__ == "__main__":
    sys.exit(main())
