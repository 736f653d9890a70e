"""A config that costs two children is quarantined and reported; the loss of a rank is no strike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distune.config.job import TrialLimits
from distune.distributed.simulated import Faults
from distune.report.build import result_of
from distune.report.console import ConsoleListener
from distune.report.result import RunResult
from distune.space.op_config import TuningConfig
from distune.trial.messages import Failure, Judge, MeasureLatency, Request, ResultBody
from tests.engine.simulated_run import Model, job, policy, tune


@dataclass
class Deadly(Model):
    """A model that costs children: those configs, in that work, up to that attempt."""

    kills: Any = field(default=lambda config: False)
    work: type = Judge
    attempts: int = 2
    kind: Any = "crash"
    limit: float | None = None

    def answer(self, rank: int, request: Request) -> tuple[ResultBody, float]:
        body, seconds = super().answer(rank, request)
        if isinstance(request.body, self.work) and self.kills(request.body.config) and request.attempt <= self.attempts:
            return Failure(self.kind, f"planted {self.kind}", "last words", limit=self.limit), seconds
        return body, seconds


def deep(config: TuningConfig) -> bool:
    """The default config of the synthetic model: everything is quantized."""
    return {"conv0", "conv1", "conv2", "conv3", "matmul0"} <= set(config.quantized_ops)


@pytest.mark.parametrize("kind", ["crash", "deadline", "memory"])
def test_two_children_quarantine_a_config_and_the_run_goes_on(tmp_path: Path, kind: str) -> None:
    run = tune(tmp_path, Deadly(kills=deep, kind=kind), workers=3)
    assert run.outcome.outcome == "met"
    result = result_of(run.outcome)
    (entry, *_) = result.quarantined
    trial = result.trials[0]
    assert (entry.trial, entry.config_hash, entry.work) == (1, trial.config_hash, "judging it")
    assert (trial.verdict, trial.attempts) == ("failed", 2)
    assert entry.reason == trial.reason == f"planted {kind}"
    assert any("quarantined" in warning and "last words" in warning for warning in result.warnings)
    assert RunResult.from_json(result.to_json()) == result


def test_what_is_quarantined_stays_so_after_a_resume_and_is_not_tried_again(tmp_path: Path) -> None:
    first = Deadly(kills=deep)
    tune(tmp_path, first, interrupt_at=4)
    again = Deadly(kills=deep)
    run = tune(tmp_path, again)
    assert run.outcome.outcome == "met"
    assert [entry.config_hash for entry in run.outcome.quarantined][:1] == [first.judged[0]]
    assert first.judged[0] not in again.judged


def limited(deadline_s: float | None = None, memory_bytes: int | None = None) -> Any:
    return job(limits=TrialLimits(deadline_s, memory_bytes), exit_policy=policy(max_trials=3))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("then", "now"), [(limited(50.0), limited(200.0)), (limited(50.0), limited())])
def test_a_config_that_went_over_its_deadline_is_tried_again_where_it_has_longer(
    tmp_path: Path, then: Any, now: Any, workers: int
) -> None:
    model = Model(seconds=lambda rank, request: 100.0 if isinstance(request.body, Judge) else 1.0)
    first = tune(tmp_path, model, then, workers=workers)
    assert first.outcome.best is None
    assert first.outcome.quarantined
    raised = tune(tmp_path, model, now, workers=workers)
    assert raised.outcome.outcome == "met"
    assert raised.outcome.quarantined == ()


@pytest.mark.parametrize("deadline_s", [50.0, 20.0])
def test_it_is_not_where_it_has_no_longer(tmp_path: Path, deadline_s: float) -> None:
    model = Model(seconds=lambda rank, request: 100.0 if isinstance(request.body, Judge) else 1.0)
    first = tune(tmp_path, model, limited(50.0))
    before = len(model.judged)
    again = tune(tmp_path, model, limited(deadline_s))
    assert len(model.judged) == before
    assert again.outcome.quarantined == first.outcome.quarantined


@pytest.mark.parametrize(
    ("then", "now", "tried"),
    [(1000, 2000, True), (1000, 1000, False), (2000, 1000, False), (1000, None, False), (None, 2000, False)],
)
def test_a_config_that_took_too_much_memory_is_tried_again_where_it_may_take_more(
    tmp_path: Path, then: int | None, now: int | None, tried: bool
) -> None:
    tune(tmp_path, Deadly(kills=deep, kind="memory", limit=then), limited(memory_bytes=then))
    again = tune(tmp_path, Model(), limited(memory_bytes=now))
    assert bool(again.outcome.quarantined) != tried


def test_one_lost_child_and_any_number_of_lost_ranks_are_no_quarantine(tmp_path: Path) -> None:
    undisturbed = tune(tmp_path / "quiet", Model(cost={"conv1": 0.2}))
    model = Deadly(cost={"conv1": 0.2}, kills=lambda config: True, attempts=1)
    run = tune(tmp_path / "run", model, workers=5, faults=Faults(lost={1: 2.5, 2: 3.5, 3: 6.2, 4: 7.1}))
    assert set(run.outcome.lost_ranks) == {1, 2, 3, 4}
    assert run.outcome.quarantined == ()
    assert run.winner == undisturbed.winner


def test_a_config_whose_measurement_costs_two_children_cannot_win(tmp_path: Path) -> None:
    tuning = job(exit_policy=policy(timeout=1e9, max_trials=12))
    winner = tune(tmp_path / "quiet", Model(), tuning).winner
    model = Deadly(kills=lambda config: config.hash == winner, work=MeasureLatency)
    run = tune(tmp_path / "run", model, tuning)
    assert run.outcome.outcome == "met"
    assert run.winner != winner
    (entry,) = run.outcome.quarantined
    assert (entry.config_hash, entry.work) == (winner, "measuring its latency")


def test_where_only_quarantined_configs_meet_the_criterion_is_not_met(tmp_path: Path) -> None:
    model = Deadly(kills=lambda config: True, work=MeasureLatency)
    run = tune(tmp_path, model)
    assert run.outcome.outcome in ("not_met", "budget_spent")
    assert run.outcome.quarantined
    assert run.outcome.best is None


def test_the_console_names_what_is_quarantined_and_the_ranks_that_were_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(tmp_path, Deadly(kills=deep), workers=2, faults=Faults(lost={1: 3.0}))
    with ConsoleListener(quiet=True) as console:
        console.show(result_of(run.outcome), tmp_path)
    said = capsys.readouterr().err
    assert "lost ranks" in said
    assert "quarantined" in said
    assert "trial 1" in said
