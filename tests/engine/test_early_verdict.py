"""Whole runs whose failing trials end early decide as those do that score every trial in full."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distune.config.job import CriterionSpec, StrategySpec, TuningJob
from distune.evaluation.criterion import better, meets
from distune.evaluation.order import SampleOrder
from distune.journal.replay import decisions
from distune.space.op_config import TuningConfig
from distune.trial.messages import Accuracy, Baseline, Judge, ResultBody
from tests.engine.simulated_run import Model, Run, job, policy, tune

ORDER = SampleOrder(np.arange(100, dtype=np.uint8).tobytes(), (100.0,), margins=True, nearest=1)


@dataclass
class EarlyModel(Model):
    """Workers that do no more than they are asked for: of a trial that fails they give bounds."""

    noise: float = 0.0

    def _body(self, body: Any) -> ResultBody:
        answer = super()._body(body)
        if isinstance(body, Baseline) and isinstance(answer, Accuracy):
            return replace(answer, order=ORDER.encode())
        if not isinstance(body, Judge) or not isinstance(answer, Accuracy):
            return answer
        if body.accuracy == "survey":
            return replace(answer, score=answer.value, decisive="some")
        found = replace(answer, score=answer.value + random.Random(body.config.hash).uniform(-1, 1) * self.noise)
        assert body.target is not None
        if body.accuracy == "exact" or meets(answer.value, body.target, body.higher_is_better):
            return found
        ranking = body.accuracy == "ranking"
        if not ranking and body.floor is not None and meets(answer.value, body.floor, body.higher_is_better):
            return found
        # As pessimistic as bounds may be: they end right behind what must not be reached.
        limit = body.target if body.floor is None else min(body.floor, body.target, key=lambda v: v * self._sign)
        side = math.nextafter(limit, -math.inf * self._sign)
        low, high = (-1e9, side) if self.higher_is_better else (side, 1e9)
        if not low <= answer.value <= high:
            low = high = answer.value
        return replace(
            found,
            value=math.nan,
            low=low,
            high=high,
            metrics={},
            samples=20 + random.Random(body.config.hash).randrange(60),
            complete=False,
            verdict=None if ranking else False,
        )

    @property
    def _sign(self) -> int:
        return 1 if self.higher_is_better else -1


def decided(run: Run) -> list[Any]:
    """The decisions, without accuracies of trials that fail and the config that was best known when a stage closed."""
    out: list[Any] = []
    for decision in decisions(run.records):
        kept = {key: value for key, value in decision.items() if key not in ("accuracy", "base", "stopped")}
        out.append(kept)
    return out


def planted(kind: type[Model], seed: int, higher: bool, scale: float) -> Any:
    chance = random.Random(seed)
    cost = {f"conv{i}": chance.choice((0.0, 0.01, 0.04, 0.3)) * scale for i in range(5)}
    cost["matmul0"] = chance.choice((0.0, 0.02)) * scale
    noise = chance.choice((0.0, 0.02)) * scale

    def accuracy(config: TuningConfig) -> float:
        own = random.Random(f"{seed}{config.hash}").uniform(-noise, noise)
        lost = sum(cost.get(name, 0.0) for name in config.quantized_ops) + own
        return 1.0 - lost if higher else 1.0 + lost

    return kind(cost, higher_is_better=higher, convs=5, matmuls=1, of=accuracy)


def tuning(strategy: str, higher: bool, timeout: float = 0.0, max_trials: int = 40, **changes: Any) -> TuningJob:
    level: Mapping[str, Any] = {"conservative": 0, "auto": "auto"}
    return job(
        criterion=CriterionSpec("absolute", 0.1, higher),
        strategy=StrategySpec(strategy),
        quant_level=level.get(strategy, 1),
        exit_policy=policy(timeout, max_trials),
        **changes,
    )


STRATEGIES = ("basic", "mse", "mse_v2", "conservative", "auto", "exhaustive", "random", "tpe")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("higher", [True, False], ids=["higher", "lower"])
def test_decisions_are_those_of_complete_evaluations(tmp_path: Path, strategy: str, higher: bool) -> None:
    ended_early = 0
    for seed, (scale, timeout) in enumerate([(1.0, 1e9), (3.0, 0.0)]):
        settings = tuning(strategy, higher, timeout)
        plain = tune(tmp_path / f"plain{seed}", planted(Model, seed, higher, scale), settings)
        early = tune(tmp_path / f"early{seed}", planted(EarlyModel, seed, higher, scale), settings, workers=3)
        assert decided(early) == decided(plain)
        assert early.outcome.outcome == plain.outcome.outcome
        assert early.winner == plain.winner
        assert early.outcome.best is not None
        assert early.outcome.best.complete
        assert early.outcome.best.accuracy == plain.outcome.best.accuracy  # type: ignore[union-attr]
        ended_early += sum(not trial.complete for trial in early.outcome.trials)
    if strategy not in ("conservative", "tpe"):  # which look at every accuracy
        assert ended_early


@pytest.mark.parametrize("strategy", ["basic", "auto"])
@pytest.mark.parametrize("higher", [True, False], ids=["higher", "lower"])
def test_a_default_of_infinite_loss_changes_no_decision(tmp_path: Path, strategy: str, higher: bool) -> None:
    """As a perplexity that overflows: how much better another config is cannot be said in advance."""

    def overflowing(config: TuningConfig) -> float:
        algorithms = {option.activation.algorithm for _, option in config.ops if option.activation is not None}
        quantized = all(option.is_quantized for _, option in config.ops)
        lost = math.inf if quantized and algorithms == {"minmax"} else 0.2 + random.Random(config.hash).random()
        return -lost if higher else lost

    def kind(of: type[Model]) -> Any:
        return of(baseline=0.0, higher_is_better=higher, of=overflowing)

    plain = tune(tmp_path / "plain", kind(Model), tuning(strategy, higher))
    early = tune(tmp_path / "early", kind(EarlyModel), tuning(strategy, higher), workers=3)
    assert decided(early) == decided(plain)
    assert early.winner == plain.winner


def broken(kind: type[Model], seed: int) -> Any:
    """Of some configs the accuracy is NaN."""
    whole = planted(kind, seed, True, 3.0)

    def accuracy(config: TuningConfig) -> float:
        return math.nan if random.Random(f"{seed}{config.hash}").random() < 0.3 else whole.of(config)

    return kind(convs=5, matmuls=1, of=accuracy)


@pytest.mark.parametrize("strategy", ["basic", "mse", "auto"])
def test_what_is_nan_is_known_to_be_nan_whether_its_trial_ended_early_or_not(tmp_path: Path, strategy: str) -> None:
    for seed in range(6):
        settings, model = tuning(strategy, True, 1e9 * (seed % 2), 20), broken(EarlyModel, seed)
        plain = tune(tmp_path / f"plain{seed}", broken(Model, seed), settings)
        early = tune(tmp_path / f"early{seed}", model, settings)
        assert decided(early) == decided(plain)
        assert early.winner == plain.winner
        lost = {trial.config.hash for trial in plain.outcome.trials if math.isnan(trial.accuracy or 0.0)}
        assert not [config_hash for config_hash in lost if model.judged.count(config_hash) > 1]


def tuned(kind: type[Model], seed: int) -> Any:
    """What an op costs depends on how it is quantized."""

    def accuracy(config: TuningConfig) -> float:
        chosen = [f"{seed}{name}{option}" for name, option in config.ops if option.is_quantized]
        return 1.0 - sum(random.Random(each).choice((0.0, 0.01, 0.03, 0.06, 0.3)) for each in chosen)

    return kind(convs=5, matmuls=1, of=accuracy)


@pytest.mark.parametrize("strategy", ["basic", "mse"])
def test_what_is_given_back_does_not_depend_on_what_ended_early(tmp_path: Path, strategy: str) -> None:
    given_back = 0
    for seed in range(12):
        settings = tuning(strategy, True, 1e9, 20, refine_trials=6)
        plain = tune(tmp_path / f"plain{seed}", tuned(Model, seed), settings)
        early = tune(tmp_path / f"early{seed}", tuned(EarlyModel, seed), settings, workers=3)
        assert decided(early) == decided(plain)
        assert early.winner == plain.winner
        given_back += len(plain.outcome.given_back)
    assert given_back


def test_the_best_effort_is_the_one_that_complete_evaluations_find(tmp_path: Path) -> None:
    """Nothing meets: of the trials that ended early the best must still be told."""

    def hopeless(kind: type[Model]) -> Any:
        return kind(of=lambda config: 0.5 + random.Random(config.hash).random() * 0.3)

    for strategy in ("exhaustive", "mse", "mse_v2"):
        settings = tuning(strategy, True, max_trials=12)
        plain = tune(tmp_path / f"{strategy}-plain", hopeless(Model), settings)
        early = tune(tmp_path / f"{strategy}-early", hopeless(EarlyModel), settings)
        assert early.winner == plain.winner
        best = max(early.outcome.trials, key=lambda trial: trial.accuracy or 0.0)
        assert early.outcome.best == best or not better(best.accuracy or 0, early.outcome.best.accuracy, True)  # type: ignore[union-attr,arg-type]


def test_a_resumed_run_keeps_the_order_and_asks_for_nothing_again(tmp_path: Path) -> None:
    settings = tuning("basic", True)
    model = planted(EarlyModel, 3, True, 10.0)
    whole = tune(tmp_path / "whole", planted(EarlyModel, 3, True, 10.0), settings)
    first = tune(tmp_path / "cut", model, settings, interrupt_at=4)
    assert first.outcome.outcome == "interrupted"
    resumed = tune(tmp_path / "cut", model, settings, workers=2)
    assert decided(resumed) == decided(whole)
    keys = [(r.body.config.hash, r.body.accuracy, r.body.floor) for _, r in model.asked if isinstance(r.body, Judge)]
    finished = keys[:3]
    assert all(keys.count(key) == 1 for key in finished)


def test_switched_off_every_trial_is_exact(tmp_path: Path) -> None:
    model = planted(EarlyModel, 0, True, 3.0)
    tune(tmp_path, model, tuning("basic", True, early_verdict=False))
    assert {request.body.accuracy for _, request in model.asked if isinstance(request.body, Judge)} == {"exact"}


def test_decisive_ranking_accepts_only_what_was_judged_in_full(tmp_path: Path) -> None:
    for seed, scale in enumerate((1.0, 3.0)):
        full = tune(tmp_path / f"full{seed}", planted(Model, seed, True, scale), tuning("basic", True))
        model = planted(EarlyModel, seed, True, scale)
        settings = tuning("basic", True, ranking="decisive")
        run = tune(tmp_path / f"decisive{seed}", model, settings)
        assert run.outcome.outcome == full.outcome.outcome
        assert run.winner == full.winner  # without noise in the score the order is the same
        assert run.outcome.best is not None
        assert run.outcome.best.complete
        many = tune(tmp_path / f"many{seed}", planted(EarlyModel, seed, True, scale), settings, workers=3)
        assert decided(many) == decided(run)
        assert many.outcome.op_impact == run.outcome.op_impact
    surveys = [request.body for _, request in model.asked if getattr(request.body, "accuracy", "") == "survey"]
    assert len(surveys) == len({body.config.hash for body in surveys}) > 0  # once for each config started from
    ranked = [trial for trial in run.outcome.trials if trial.verdict == "not_judged"]
    assert ranked
    assert all(trial.accuracy is None and trial.score is not None for trial in ranked)


def test_where_nothing_decides_ops_are_ranked_in_full(tmp_path: Path) -> None:
    """The config that the trials differ from has no decisive samples, or its survey failed."""

    class Undecided(EarlyModel):
        def _body(self, body: Any) -> ResultBody:
            answer = super()._body(body)
            if isinstance(body, Judge) and body.accuracy == "survey" and isinstance(answer, Accuracy):
                return replace(answer, decisive="")
            return answer

    plain = tune(tmp_path / "plain", planted(EarlyModel, 1, True, 3.0), tuning("basic", True))
    run = tune(tmp_path / "run", planted(Undecided, 1, True, 3.0), tuning("basic", True, ranking="decisive"), workers=2)
    assert decided(run) == decided(plain)
    assert all(trial.verdict != "not_judged" for trial in run.outcome.trials)
