"""A backend that judges another form of the model than it deploys: nothing is accepted by the first form alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from distune.space.op_config import TuningConfig
from distune.trial.messages import Inspection, Judge, Request, ResultBody
from tests.engine.simulated_run import Model, job, tune


@dataclass
class Lowered(Model):
    """Its deployed models lose ``lost`` more with every quantized op."""

    lost: float = 0.0

    def _body(self, body: Any) -> ResultBody:
        if isinstance(body, Judge) and body.deployed:
            whole = replace_cost(self, self.lost)
            return Model._body(whole, replace(body, deployed=False))
        answer = super()._body(body)
        return replace(answer, judged_is_deployed=False) if isinstance(answer, Inspection) else answer


def replace_cost(model: Lowered, lost: float) -> Model:
    def accuracy(config: TuningConfig) -> float:
        return model.accuracy(config) - lost * len(config.quantized_ops)

    return Model(of=accuracy)


def deployed(model: Model) -> list[str]:
    return [r.body.config.hash for _, r in model.asked if isinstance(r.body, Judge) and r.body.deployed]


def test_what_meets_is_judged_again_and_scored_as_deployed(tmp_path: Path) -> None:
    model = Lowered(lost=0.01)
    run = tune(tmp_path, model)
    best = run.outcome.best
    assert best is not None
    assert run.outcome.outcome == "met"
    assert deployed(model) == [best.config.hash]
    assert best.accuracy == pytest.approx(1.0 - 0.01 * len(best.config.quantized_ops))


def test_what_meets_only_before_it_is_lowered_is_not_accepted(tmp_path: Path) -> None:
    model = Lowered(lost=0.03)
    run = tune(tmp_path, model)
    best = run.outcome.best
    assert best is not None
    assert run.outcome.outcome == "met"
    assert len(best.config.quantized_ops) == 3, "three ops are all that the deployed model can afford"
    assert best.accuracy == pytest.approx(0.91)
    first = next(trial for trial in run.outcome.trials if trial.config.hash == deployed(model)[0])
    assert first.verdict == "not_met"
    assert first.warnings == ("judged 1, but as deployed it scores 0.73, which does not meet",)


def test_what_fails_is_not_lowered(tmp_path: Path) -> None:
    model = Lowered(cost={"conv0": 0.5})
    tune(tmp_path, model)
    failed = [hash_ for hash_ in model.judged if hash_ not in deployed(model)]
    assert len(failed) > 0


@pytest.mark.parametrize("workers", [2, 3])
def test_the_decisions_do_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    def slow_first(rank: int, request: Request) -> float:
        return 5.0 if rank == 0 else 1.0

    alone = tune(tmp_path / "alone", Lowered(lost=0.03))
    many = tune(tmp_path / "many", Lowered(lost=0.03, seconds=slow_first), workers=workers)
    assert many.winner == alone.winner
    assert [t.config.hash for t in many.outcome.trials] == [t.config.hash for t in alone.outcome.trials]


def test_a_resumed_run_asks_nothing_again(tmp_path: Path) -> None:
    model = Lowered(lost=0.03)
    tune(tmp_path, model, interrupt_at=4)
    run = tune(tmp_path, model)
    assert run.outcome.outcome == "met"
    asked = [(r.body.config.hash, r.body.deployed) for _, r in model.asked if isinstance(r.body, Judge)]
    assert len(asked) - len(set(asked)) <= 1, "at most the one that was interrupted runs twice"


def test_a_backend_that_deploys_what_it_judges_is_asked_once(tmp_path: Path) -> None:
    model = Model()
    tune(tmp_path, model, job())
    assert deployed(model) == []
