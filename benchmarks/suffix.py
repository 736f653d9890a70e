"""Suffix-only evaluation: what the ranking stage costs when each trial runs from the last cut before the op it changes.

Two workers of this process judge the candidates of the instance-wise fallback stage, one after the other in turns: one
computes every trial as a whole, the other may keep tensors at cuts (``tuning.shared_prefix``). Whoever goes first
changes from trial to trial. The sums include what the second one spends on the tensors, on the second session of each
trial and on proving each cut. Every answer must be the same.

    DISTUNE_ASSETS=... python benchmarks/suffix.py [--only resnet20] [--rows 1000] [--limit 512] [--json FILE]

Seconds are those of the one thread that works, so that neighbours count little. The exit code is 1 where an answer
differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host import host

if TYPE_CHECKING:
    from distune.config.job import TuningJob
    from distune.trial.messages import RequestBody

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("resnet20", "mobilenetv1")
LIMIT = "evaluation.accuracy.dataloader.dataset.Npz.limit"
GOAL = 1.6


@dataclass(frozen=True)
class Stage:
    """The ranking stage of one model.

    Attributes:
        whole_s, suffix_s: Seconds of all trials.
        ratio: How many times faster the stage is.
        ratios: The same by trial, in their order.
        cuts: Cuts that tensors were kept at.
        differing: Trials whose answer differs.
    """

    name: str
    groups: int
    samples: int
    limit_mib: float
    kept_mib: float
    cuts: int
    whole_s: float
    suffix_s: float
    ratio: float
    ratios: tuple[float, ...]
    differing: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table. Exit code 1 where an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, action="append", help="these models only")
    parser.add_argument("--rows", type=int, default=1000, help="evaluation samples")
    parser.add_argument("--limit", type=float, help="MiB to keep at most (default: the tuner's)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args(arguments)
    stages = []
    for name in given.only or MODELS:
        stages.append(measure(name, given.rows, given.limit))
        print(line(stages[-1]), flush=True)
    if given.json is not None:
        content = {"benchmark": "suffix", "goal": GOAL, "host": host(), "stages": [asdict(stage) for stage in stages]}
        given.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(any(stage.differing for stage in stages))


def measure(name: str, rows: int, limit: float | None) -> Stage:
    """The stage of one asset."""
    from distune.api.names import known_names
    from distune.config.load import load_config
    from distune.space.tuning_space import build_space
    from distune.strategies.default import default_config
    from distune.trial import messages as m
    from distune.trial.runner import Runner

    path = ROOT / "launch" / "examples" / f"{name}.yaml"
    job: TuningJob = load_config(path, [f"{LIMIT}={rows}"], known_names()).job()
    if limit is not None:
        job = replace(job, shared_prefix_bytes=int(limit * 2**20))
    workers = {"whole": Runner(replace(job, shared_prefix_bytes=0), "here", 0), "suffix": Runner(job, "here", 1)}

    def ask(worker: str, body: RequestBody) -> Any:
        answer = workers[worker].answer(m.Request(1, body)).body
        if isinstance(answer, m.Failure):
            sys.exit(f"{answer.message}\n{answer.detail}")
        return answer

    size = job.calibration.sampling_sizes[0]
    capability = ask("whole", m.Inspect()).capability
    space = build_space(capability, job.constraints, job.approach, job.recipes, job.calibration.sampling_sizes)
    base = default_config(space, size)
    statistics = ask("whole", m.Calibrate(size, 0, 1)).blob
    baseline = ask("whole", m.Baseline())
    groups = space.quantized_groups(base, "fp32")
    stage = "instance-wise fallback to fp32"
    configs = [space.fallback(base, [group], "fp32") for group in reversed(groups)]
    for worker in workers:
        for message in (m.LoadStatistics((), size, statistics), m.UseOrder(baseline.order)):
            workers[worker].receive(message)
        ask(worker, m.Judge(base))  # warm: the weights are quantized
        workers[worker].receive(m.StageOpened(stage, base))
    seconds: dict[str, list[float]] = {worker: [] for worker in workers}
    differing = 0
    for index, config in enumerate(configs):
        answers = {}
        for worker in sorted(workers, reverse=bool(index % 2)):
            start = time.thread_time()
            answers[worker] = ask(worker, m.Judge(config, "exact", baseline.value * 0.99))
            seconds[worker].append(time.thread_time() - start)
        found = [(a.value, a.low, a.high, a.metrics, a.samples, a.verdict) for a in answers.values()]
        differing += found[0] != found[1]
    cuts, kept = _kept(workers["suffix"])
    whole, suffix = sum(seconds["whole"]), sum(seconds["suffix"])
    ratios = tuple(a / b for a, b in zip(seconds["whole"], seconds["suffix"], strict=True))
    for runner in workers.values():
        runner.close()
    return Stage(
        name=name,
        groups=len(groups),
        samples=rows,
        limit_mib=job.shared_prefix_bytes / 2**20,
        kept_mib=kept / 2**20,
        cuts=cuts,
        whole_s=whole,
        suffix_s=suffix,
        ratio=whole / suffix,
        ratios=ratios,
        differing=differing,
    )


def _kept(runner: Any) -> tuple[int, int]:
    """Cuts that are used, and bytes that are kept."""
    shared = runner._backend()._shared
    return (0, 0) if shared is None or shared._store is None else (len(shared.cuts), shared._store.size)


def line(stage: Stage) -> str:
    """The figures for people."""
    return (
        f"{stage.name:<14}{stage.groups:>4} groups {stage.samples:>6} samples {stage.cuts:>3} cuts "
        f"{stage.kept_mib:>7.0f} of {stage.limit_mib:.0f} MiB   whole {stage.whole_s:>7.2f} s   suffix "
        f"{stage.suffix_s:>7.2f} s   {stage.ratio:.2f} x (goal {GOAL})   {stage.differing} answers differ\n"
        f"{'':<14}by trial, last op first: {' '.join(f'{ratio:.1f}' for ratio in stage.ratios)}"
    )


if __name__ == "__main__":
    sys.exit(main())
