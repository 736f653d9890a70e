"""Work that ran ahead of the stages: it saves idle time and decides nothing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distune.config.job import StrategySpec
from distune.distributed.simulated import SimulatedTransport
from distune.engine.outcome import RunOutcome
from distune.engine.tuner import Tuner
from distune.journal.journal import read_records
from distune.journal.replay import VOLATILE
from distune.journal.workspace import Workspace
from distune.trial.messages import Judge, Request
from tests.engine.simulated_run import Model, job, policy

STRATEGIES = ("basic", "mse", "mse_v2", "conservative", "auto")


def _run(path: Path, seed: int, strategy: str, workers: int, speculates: bool) -> tuple[Any, RunOutcome, Model, float]:
    """What was decided, the outcome, the model and the seconds of a run of a made-up model."""
    chance = random.Random(seed)
    convs = chance.randint(3, 14)
    cost = {f"conv{i}": chance.choice((0.0, 0.001, 0.02, 0.15 * chance.random())) for i in range(convs)}
    model = Model(
        cost,
        convs=convs,
        failing=lambda config: random.Random(f"{seed}{config.hash}").random() < 0.02,
        seconds=lambda rank, request: random.Random(f"{seed}{rank}{request.id}").uniform(0.5, 2.0),
    )
    level = {"conservative": 0, "auto": "auto"}.get(strategy, 1)
    tuning = job(
        strategy=StrategySpec(strategy),
        quant_level=level,
        exit_policy=policy(chance.choice((0.0, 0.0, 1e9)), chance.choice((6, 20, 60, 100))),
        seed=seed,
    )
    transport = SimulatedTransport(model.answer, workers)
    with Workspace.open(path) as workspace:
        outcome = Tuner(tuning, transport, workspace, speculates=speculates).run()
        seconds = transport.now()
        transport.close(outcome.exit_code)
        records = read_records(workspace.journal)
    decided = [
        {name: value for name, value in record.data.items() if name not in VOLATILE}
        for record in records
        if record.kind == "decision"
    ]
    return decided, outcome, model, seconds


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(6))
def test_the_decisions_are_the_same_with_it_and_without_for_any_number_of_ranks(
    tmp_path: Path, strategy: str, seed: int
) -> None:
    plain, outcome, _, _ = _run(tmp_path / "plain", seed, strategy, 1, False)
    for workers in (1, 2, 5, 24):
        decided, again, model, _ = _run(tmp_path / f"{workers}", seed, strategy, workers, True)
        assert decided == plain
        assert again.outcome == outcome.outcome
        assert [trial.config.hash for trial in again.trials] == [trial.config.hash for trial in outcome.trials]
        assert max(Counter(model.judged).values()) == 1, "what ran ahead was not used but done again"


def test_one_rank_never_runs_ahead(tmp_path: Path) -> None:
    _, _, plain, _ = _run(tmp_path / "plain", 1, "basic", 1, False)
    _, _, model, _ = _run(tmp_path / "ahead", 1, "basic", 1, True)
    assert model.judged == plain.judged


def test_a_rank_that_is_done_with_what_it_ran_ahead_with_goes_on(tmp_path: Path) -> None:
    """While the first trial takes long, the other rank does all shards of the probe that comes next, not one."""
    begun: list[str] = []

    def seconds(rank: int, request: Request) -> float:
        begun.append(type(request.body).__name__)
        return 60.0 if isinstance(request.body, Judge) else 1.0

    model = Model({f"conv{i}": 0.02 for i in range(9)}, convs=9, seconds=seconds)
    transport = SimulatedTransport(model.answer, 2)
    with Workspace.open(tmp_path) as workspace:
        Tuner(job(strategy=StrategySpec("mse")), transport, workspace, speculates=True).run()
        transport.close(0)
    first, second, *_ = [at for at, name in enumerate(begun) if name == "Judge"]
    probes = begun.count("Probe")
    assert probes > 2
    assert begun[first:second].count("Probe") == probes


@pytest.mark.parametrize("strategy", ["basic", "mse_v2"])
def test_it_saves_time_where_ranks_would_idle(tmp_path: Path, strategy: str) -> None:
    """Summed over some models: a guess that fails may cost a trial's time."""
    saved = 0.0
    for seed in range(8):
        _, _, _, without = _run(tmp_path / f"{seed}", seed, strategy, 16, False)
        _, _, _, ahead = _run(tmp_path / f"{seed} ahead", seed, strategy, 16, True)
        saved += (without - ahead) / without
    assert saved / 8 > 0.05
