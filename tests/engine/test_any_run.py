"""A generated mix of settings: strategy x criterion x budget x results, whole runs on the virtual clock.

Runs for as long as ``DISTUNE_FUZZ_S`` says (seconds), for a few seconds without it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from distune.config.job import CriterionSpec, ObjectiveSpec, StrategySpec
from distune.distributed.simulated import Faults
from distune.evaluation.criterion import meets, target_accuracy
from distune.space.op_config import TuningConfig
from tests.engine.simulated_run import Model, job, policy, tune

STRATEGIES = ("basic", "mse", "mse_v2", "conservative", "auto", "exhaustive", "random", "tpe", "knapsack")
"""bayesian takes seconds an ask; hawq_v2 needs a loss, sigopt its service."""

SECONDS = float(os.environ.get("DISTUNE_FUZZ_S", "5"))


def _model(chance: random.Random, baseline: float, higher: bool, scale: float) -> Model:
    convs, matmuls = chance.randint(1, 8), chance.randint(0, 3)
    names = [f"conv{i}" for i in range(convs)] + [f"matmul{i}" for i in range(matmuls)]
    cost = {name: chance.choice((0.0, 0.1, 1.0, chance.random())) * scale for name in names}
    noise = chance.choice((0.0, 0.05)) * scale
    seed = chance.random()

    def accuracy(config: TuningConfig) -> float:
        own = random.Random(f"{seed}{config.hash}")
        if own.random() < 0.02:
            return float("nan")
        lost = sum(cost.get(name, 0.0) for name in config.quantized_ops) + own.uniform(-noise, noise)
        return baseline - lost if higher else baseline + lost

    return Model(
        cost,
        baseline=baseline,
        higher_is_better=higher,
        convs=convs,
        matmuls=matmuls,
        of=accuracy,
        failing=lambda config: random.Random(config.hash).random() < 0.03,
        ratio=lambda config: None if random.Random(config.hash + "l").random() < 0.05 else 1 - 0.9 * noise,
        seconds=lambda rank, request: random.Random(f"{seed}{rank}{request.id}").uniform(0.1, 20.0),
    )


def _one_run(seed: int, strategy: str) -> str:
    chance = random.Random(seed)
    higher, baseline = chance.random() < 0.5, chance.choice((1.0, 0.8, 0.0, -1.0, 40.0))
    criterion = CriterionSpec(
        chance.choice(("relative", "absolute")), chance.choice((0.0, 0.01, 0.1, 0.5)), higher_is_better=higher
    )
    max_trials = chance.choice((1, 2, 3, 7, 20, 60))
    level = {"conservative": 0, "auto": "auto"}.get(strategy, 1)
    tuning = job(
        criterion=criterion,
        exit_policy=policy(chance.choice((0.0, 0.0, 1e9, 30.0)), max_trials),
        strategy=StrategySpec(strategy),
        quant_level=level,
        objectives=(ObjectiveSpec(chance.choice(("performance", "modelsize", "footprint", "accuracy"))),),
        seed=seed,
    )
    model = _model(chance, baseline, higher, chance.choice((0.01, 0.2, 2.0)))
    workers = chance.randint(1, 6)
    lost = {rank: chance.uniform(0, 200) for rank in range(1, workers) if chance.random() < 0.2}
    with tempfile.TemporaryDirectory() as folder:
        run = tune(Path(folder), model, tuning, workers=workers, faults=Faults(lost=lost))
    trials = run.outcome.trials
    target = target_accuracy(criterion, baseline)
    assert len(trials) <= max_trials
    assert [trial.id for trial in trials] == list(range(1, len(trials) + 1))
    assert len({trial.config.hash for trial in trials}) == len(trials), "a config was judged twice"
    handed_out = Counter(model.judged)
    assert all(count <= 1 + len(run.outcome.lost_ranks) for count in handed_out.values())
    for trial in trials:
        met = trial.accuracy is not None and meets(trial.accuracy, target, higher)
        assert trial.met == (met and not trial.config.is_fp32)
    best = run.outcome.best
    assert (run.outcome.outcome == "met") == any(trial.met for trial in trials)
    if run.outcome.outcome == "met":
        assert best is not None
        assert best.met
    return run.outcome.outcome


@pytest.mark.timeout(SECONDS * 2 + 60)
def test_every_run_ends_what_is_accepted_meets_and_nothing_is_judged_twice() -> None:
    end = time.monotonic() + SECONDS
    outcomes: Counter[str] = Counter()
    seed = 0
    while seed < len(STRATEGIES) or time.monotonic() < end:
        strategy = STRATEGIES[seed % len(STRATEGIES)]
        try:
            outcomes[_one_run(seed, strategy)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, strategy {strategy}") from error
        seed += 1
    print(dict(outcomes))
    assert outcomes["met"] > 0
