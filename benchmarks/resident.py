"""What each further rank of a node costs in memory.

Starts 1, 2, ... ranks of this machine on one job, lets each load the model, quantize it and run it, and reads the
kernel's own figures of the trial processes: resident (RSS); the proportional share (PSS), in which a page that several
processes map counts once among them; and what a process has for itself (USS). The PSS is told apart by what is behind
the pages. Prints a table; ``--json PATH`` writes it.

    python benchmarks/resident.py launch/examples/minilm_dynamic.yaml --ranks 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from host import host

from distune.api.names import known_names
from distune.config.job import TuningJob
from distune.config.load import load_config
from distune.distributed.local import LocalTransport
from distune.distributed.transport import ResultArrived
from distune.engine.failures import raise_failure
from distune.space.tuning_space import build_space
from distune.trial.messages import Failure, Inspect, Inspection, MeasureLatency, Request, RequestBody, ResultBody

MIB = 2**20


WHERE = ("anonymous", "libraries", "weights", "other files")
"""What is behind a page: nothing (heap, arenas, repacked weights), code and data of programs and shared libraries,
weight files that the ranks of the node share, any other file."""


@dataclass(frozen=True)
class Row:
    """Memory of all trial processes together, in MiB, and what the last rank added."""

    ranks: int
    rss: float
    pss: float
    uss: float
    added_rss: float
    added_pss: float
    added_uss: float
    pss_of: Mapping[str, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--ranks", type=int, default=3, help="up to this many")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    job = load_config(arguments.config, (), known_names()).job("unused")
    model_mib = Path(job.model.path).stat().st_size / MIB
    rows: list[Row] = []
    for ranks in range(1, arguments.ranks + 1):
        rss, pss, uss, parts = _memory(job, ranks)
        before = rows[-1] if rows else Row(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, {})
        rows.append(Row(ranks, rss, pss, uss, rss - before.rss, pss - before.pss, uss - before.uss, parts))
    print(f"{arguments.config.name}: model file {model_mib:.0f} MiB; all in MiB")
    heads = ("ranks", "RSS", "PSS", "USS", "added RSS", "added PSS", "added USS", *(f"PSS: {name}" for name in WHERE))
    print(" ".join(f"{head:>{max(9, len(head))}}" for head in heads))
    for row in rows:
        figures = (row.rss, row.pss, row.uss, row.added_rss, row.added_pss, row.added_uss, *row.pss_of.values())
        cells = [
            f"{row.ranks:9}",
            *(f"{figure:{max(9, len(head))}.0f}" for head, figure in zip(heads[1:], figures, strict=True)),
        ]
        print(" ".join(cells))
    if arguments.json:
        content = {
            "benchmark": "resident",
            "config": arguments.config.name,
            "model_mib": model_mib,
            "host": {**host(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1)},
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


def _memory(job: TuningJob, ranks: int) -> tuple[float, float, float, dict[str, float]]:
    """RSS, PSS, USS and PSS by ``WHERE`` of the trial processes of ``ranks`` ranks, summed, in MiB.

    Each has quantized the model, run it, compared it with the fp32 model, and holds its session.
    """
    transport = LocalTransport(job, workers=ranks)
    try:
        inspections = _ask(transport, Inspect())
        first = inspections[0]
        if not isinstance(first, Inspection):
            raise TypeError(type(first).__name__)
        space = build_space(first.capability, job.constraints, job.approach, job.recipes, (0,))
        config = space.default()
        # One session of each stays: what has been judged last. The fp32 one that it is compared with is gone again.
        _ask(transport, MeasureLatency(space.fp32() if config.needs_calibration else config))
        children = [child for child in psutil.Process().children() if child.is_running()]
        infos = [child.memory_full_info() for child in children]
        parts = dict.fromkeys(WHERE, 0.0)
        for child in children:
            for page in child.memory_maps(grouped=True):
                parts[_behind(page.path)] += page.pss / MIB
        rss, pss, uss = (sum(getattr(info, name) for info in infos) / MIB for name in ("rss", "pss", "uss"))
        return rss, pss, uss, parts
    finally:
        transport.close()


def _behind(path: str) -> str:
    """Which of ``WHERE`` is behind pages with this path in the kernel's list."""
    if path.startswith("["):
        return "anonymous"
    if ".weights" in path:
        return "weights"
    return "libraries" if ".so" in path or "/bin/" in path else "other files"


def _ask(transport: LocalTransport, body: RequestBody) -> list[ResultBody]:
    """Have every worker answer ``body``."""
    waiting = {worker.rank for worker in transport.workers}
    for rank in sorted(waiting):
        transport.send(rank, Request(1, body))
    answers: list[ResultBody] = []
    while waiting:
        for event in transport.poll(60.0):
            if isinstance(event, ResultArrived):
                if isinstance(event.result.body, Failure):
                    raise_failure(event.result.body)
                waiting.discard(event.result.rank)
                answers.append(event.result.body)
    return answers


if __name__ == "__main__":
    main()
