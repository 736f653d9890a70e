"""Blocks: stretches of runs that are timed as one, and pairs of them.

A block is cut into chunks, and its time is the median of theirs. A chunk during which the kernel took a core away from
this process says nothing of the model.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

BLOCK_SECONDS = 0.002
"""A block repeats its model until it lasts about this long."""

CHUNK_SECONDS = 0.0001
"""Time between two readings of the clock: long against a reading, short against what disturbs."""

_SURELY_LONG = 10
"""A first run of this many blocks is believed to be that long; a shorter one may only have been disturbed."""

Run = Callable[[], object]
Clock = Callable[[], int]
Counter = Callable[[], int]


def times_preempted() -> int:
    """How often the kernel has taken a core away from a thread of this process that wanted to go on."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Chunk(NamedTuple):
    """What lies between two readings of the clock."""

    nanoseconds: int
    preempted: bool


class Pair(NamedTuple):
    """One run of each model; ``spoilt`` where one of them was preempted in every chunk."""

    candidate_ns: float
    baseline_ns: float
    spoilt: bool

    @property
    def ratio(self) -> float:
        """Candidate to fp32."""
        return self.candidate_ns / self.baseline_ns


@dataclass(frozen=True)
class Block:
    """How one model's block is made: ``chunks`` spans between readings of the clock, ``runs`` runs each."""

    run: Run
    runs: int
    chunks: int
    clock: Clock
    preempted: Counter

    @classmethod
    def sized(cls, run: Run, clock: Clock, preempted: Counter) -> Block:
        """A block of about ``BLOCK_SECONDS``; the length of a run is found by running it."""
        runs = 1
        while True:
            probe = cls(run, runs, 1, clock, preempted)
            nanoseconds = probe.time()[0].nanoseconds
            if nanoseconds < _SURELY_LONG * BLOCK_SECONDS * 1e9:  # it may have been short but for a neighbour
                nanoseconds = min(nanoseconds, *(probe.time()[0].nanoseconds for _ in range(2)))
            if nanoseconds >= CHUNK_SECONDS * 1e9:
                return replace(probe, chunks=max(1, round(BLOCK_SECONDS * 1e9 / nanoseconds)))
            runs *= 2

    @property
    def size(self) -> int:
        """Runs in the block."""
        return self.runs * self.chunks

    def limited(self, most: int) -> Block:
        """The block with at most ``most`` runs."""
        runs = min(self.runs, most)
        return replace(self, runs=runs, chunks=min(self.chunks, most // runs))

    def time(self) -> list[Chunk]:
        """Every chunk, timed."""
        run, repeat, clock, preempted = self.run, range(self.runs), self.clock, self.preempted
        chunks: list[Chunk] = []
        count = preempted()
        for _ in range(self.chunks):
            before = clock()
            for _ in repeat:
                run()
            after = clock()
            count_before, count = count, preempted()
            chunks.append(Chunk(after - before, count != count_before))
        return chunks

    def per_run(self, chunks: Sequence[Chunk]) -> tuple[float, bool]:
        """Median nanoseconds of one run, and whether all of ``chunks`` were preempted.

        Where they were not, those that were do not count. At least a fraction of a nanosecond, should the clock not
        have moved.
        """
        clean = [chunk for chunk in chunks if not chunk.preempted]
        middle = statistics.median(chunk.nanoseconds for chunk in clean or chunks)
        return max(middle, 1) / self.runs, not clean


def time_pair(candidate: Block, baseline: Block, candidate_first: bool) -> Pair:
    """Two blocks of each: A B B A."""
    outer, inner = (candidate, baseline) if candidate_first else (baseline, candidate)
    outer_chunks = outer.time()
    inner_chunks = inner.time() + inner.time()
    outer_chunks += outer.time()
    (outer_ns, outer_spoilt), (inner_ns, inner_spoilt) = outer.per_run(outer_chunks), inner.per_run(inner_chunks)
    spoilt = outer_spoilt or inner_spoilt
    return Pair(outer_ns, inner_ns, spoilt) if candidate_first else Pair(inner_ns, outer_ns, spoilt)


__all__ = ["BLOCK_SECONDS", "CHUNK_SECONDS", "Block", "Clock", "Counter", "Pair", "Run", "time_pair", "times_preempted"]
