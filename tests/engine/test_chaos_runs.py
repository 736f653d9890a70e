"""Seeded chaos on the simulated transport: the embedded example comes to the same winner whatever goes wrong.

The answers are those of the real runner, asked once for each piece of work. ``DISTUNE_CHAOS_RUNS`` says how many seeds
(20 without it).
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from distune.api.names import known_names
from distune.config.job import TuningJob
from distune.config.load import load_config
from distune.distributed.chaos import Chaos
from distune.distributed.simulated import SimulatedTransport
from distune.distributed.transport import Event, ResultArrived, WorkerInfo
from distune.engine.outcome import RunOutcome
from distune.engine.tuner import Tuner
from distune.journal.journal import read_records
from distune.journal.record import Record
from distune.journal.replay import request_key, same_decisions
from distune.journal.workspace import Workspace
from distune.trial.messages import Broadcast, Failure, Judge, LoadStatistics, Request, ResultBody
from distune.trial.runner import Runner
from tests.cli.jobs import ROOT

RUNS = int(os.environ.get("DISTUNE_CHAOS_RUNS", "20"))
WORKERS = 4

pytestmark = pytest.mark.timeout(120 + 10 * RUNS)


class Example:
    """The embedded example: what its real runner answers, remembered."""

    def __init__(self) -> None:
        self.job: TuningJob = load_config(ROOT / "launch/examples/digits.yaml", (), known_names()).job("unused")
        self._runner = Runner(self.job, "simulated", 0)
        self._known: dict[str, ResultBody] = {}
        self._heard: set[bytes] = set()

    def answer(self, rank: int, request: Request) -> tuple[ResultBody, float]:
        """For ``SimulatedTransport``; every piece of work takes a second or so."""
        key = request_key(request.body)
        if key not in self._known:
            self._known[key] = self._runner.answer(request).body
        return self._known[key], 1.0 + rank / 7

    def hear(self, rank: int, broadcast: Broadcast) -> None:
        """Statistics reach the one runner once."""
        if isinstance(broadcast, LoadStatistics) and broadcast.blob not in self._heard:
            self._heard.add(broadcast.blob)
            self._runner.receive(broadcast)


class Watched(SimulatedTransport):
    """Remembers which judgings were delivered."""

    delivered: set[int]
    requests: dict[int, Request]

    def poll(self, timeout: float) -> list[Event]:
        events = list(super().poll(timeout))
        for event in events:
            if isinstance(event, ResultArrived) and not isinstance(event.result.body, Failure):
                self.delivered.add(event.result.request_id)
        return events

    def send(self, rank: int, message: Request | Broadcast) -> None:
        if isinstance(message, Request):
            self.requests[message.id] = message
        super().send(rank, message)


@pytest.fixture(scope="module")
def example() -> Example:
    return Example()


def run(example: Example, path: Path, chaos: Chaos | None) -> tuple[RunOutcome, list[Record], Watched]:
    """One run of the example."""
    infos = [WorkerInfo(rank, f"node{rank // 2}", rank % 2) for rank in range(WORKERS)]
    transport = Watched(example.answer, infos, hear=example.hear, chaos=chaos)
    transport.delivered, transport.requests = set(), {}
    with Workspace.open(path) as workspace:
        outcome = Tuner(example.job, transport, workspace).run()
        assert outcome.outcome == "met", outcome.failure
        return outcome, read_records(workspace.journal), transport


def test_whatever_goes_wrong_the_winner_is_the_same_and_nothing_judged_is_lost(
    tmp_path: Path, example: Example
) -> None:
    quiet, undisturbed, _ = run(example, tmp_path / "quiet", None)
    assert quiet.best is not None
    lost: Counter[int] = Counter()
    failures: Counter[str] = Counter()
    for seed in range(RUNS):
        chaos = Chaos(crash=0.1, hang=0.05, kill_rank=0.02, slow=0.1, seed=seed)
        outcome, records, transport = run(example, tmp_path / str(seed), chaos)
        assert outcome.best is not None
        assert (outcome.best.id, outcome.best.config.hash) == (quiet.best.id, quiet.best.config.hash), seed
        assert same_decisions(undisturbed, records) == [], seed
        keys = [str(record.data["key"]) for record in records if record.kind == "result"]
        assert len(keys) == len(set(keys)), f"seed {seed}: a result is journalled twice"
        bodies = [transport.requests[number].body for number in transport.delivered]
        judged = {request_key(body) for body in bodies if isinstance(body, Judge)}
        assert judged <= set(keys), f"seed {seed}: a judging is lost"
        lost[len(outcome.lost_ranks)] += 1
        failures.update(trial.verdict for trial in outcome.trials if trial.attempts > 1)
    print(f"{RUNS} runs, ranks lost: {dict(lost)}, trials that took several attempts: {sum(failures.values())}")
    assert "failed" not in failures
    assert sum(count for ranks, count in lost.items() if ranks), "chaos never took a rank"
    assert sum(failures.values()) > RUNS, "chaos hardly struck"
