"""What each further rank of a node costs in memory.

Starts 1, 2, ... ranks of this machine on one job, lets each load the model, quantize it and run it, and reads the
kernel's own figures of the trial processes: resident (RSS), and the proportional share (PSS), in which a page that
several processes map counts once among them. Prints a table; ``--json PATH`` writes it.

    python benchmarks/resident.py launch/examples/minilm_dynamic.yaml --ranks 3
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from distune.api.names import known_names
from distune.config.job import TuningJob
from distune.config.load import load_config
from distune.distributed.local import LocalTransport
from distune.distributed.transport import ResultArrived
from distune.engine.failures import raise_failure
from distune.space.tuning_space import build_space
from distune.trial.messages import Export, Failure, Inspect, Inspection, Request, RequestBody, ResultBody

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """Memory of all trial processes together, in MiB, and what the last rank added."""

    ranks: int
    rss: float
    pss: float
    added_rss: float
    added_pss: float


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
        rss, pss = _memory(job, ranks)
        before = rows[-1] if rows else Row(0, 0.0, 0.0, 0.0, 0.0)
        rows.append(Row(ranks, rss, pss, rss - before.rss, pss - before.pss))
    print(f"{arguments.config.name}: model file {model_mib:.0f} MiB")
    print(f"{'ranks':>5} {'RSS MiB':>9} {'PSS MiB':>9} {'added RSS':>10} {'added PSS':>10}")
    for row in rows:
        print(f"{row.ranks:5} {row.rss:9.0f} {row.pss:9.0f} {row.added_rss:10.0f} {row.added_pss:10.0f}")
    if arguments.json:
        figures = {
            "benchmark": "resident",
            "config": arguments.config.name,
            "model_mib": model_mib,
            "host": {"machine": platform.machine(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1)},
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _memory(job: TuningJob, ranks: int) -> tuple[float, float]:
    """Summed RSS and PSS in MiB of the trial processes of ``ranks`` ranks that have each quantized the model."""
    transport = LocalTransport(job, workers=ranks)
    try:
        inspections = _ask(transport, Inspect())
        first = inspections[0]
        if not isinstance(first, Inspection):
            raise TypeError(type(first).__name__)
        space = build_space(first.capability, job.constraints, job.approach, job.recipes, (0,))
        config = space.default()
        _ask(transport, Export(space.fp32() if config.needs_calibration else config))
        infos = [child.memory_full_info() for child in psutil.Process().children() if child.is_running()]
        return sum(info.rss for info in infos) / MIB, sum(info.pss for info in infos) / MIB
    finally:
        transport.close()


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
