"""How a probe is divided into requests, and how the answers come together again: the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

from distune.strategies.stage import ProbeStage
from distune.trial.messages import Probe, ProbeAnswer

_PROBED_TOGETHER = 4
"""Ops that one request scores. Not a matter of the number of ranks: a journalled piece answers at any number."""


def shards(stage: ProbeStage) -> list[Probe]:
    """The requests of a probe."""
    args = {**stage.args, "batches": stage.batches}
    if stage.quantized is not None:
        args["quantized"] = stage.quantized.to_json()
    if stage.split == "batches":
        return [
            Probe(stage.kind, stage.config, stage.ops, args, shard, stage.batches) for shard in range(stage.batches)
        ]
    return [
        Probe(stage.kind, stage.config, stage.ops[start : start + _PROBED_TOGETHER], args)
        for start in range(0, len(stage.ops), _PROBED_TOGETHER)
    ]


def merged(answers: Sequence[ProbeAnswer]) -> dict[str, float]:
    """Scores averaged over the answers that have them, added up in the order of the shards."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for answer in answers:
        for name, value in answer.scores.items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + 1
    return {name: value / counts[name] for name, value in sums.items()}


__all__ = ["merged", "shards"]
