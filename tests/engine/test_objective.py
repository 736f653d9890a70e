"""The choice among trials that meet: by measured objective, ties by bytes and then by id."""

from __future__ import annotations

from distune.config.job import ObjectiveSpec
from distune.engine.objective import Baseline, choose
from distune.space.op_config import TuningConfig
from distune.strategies.stage import Trial
from distune.trial.messages import Latency

BASELINE = Baseline(0.8, 1000)


def trial(number: int, ratio: float | None = None, half: float = 0.01, size: int = 500, **more: object) -> Trial:
    latency = None
    if ratio is not None:
        latency = Latency(ratio, ratio - half, ratio + half, ratio, 1.0, 1, 1, 20, "host")
    return Trial(number, "s", TuningConfig(()), "met", accuracy=0.8, latency=latency, size_bytes=size, **more)  # type: ignore[arg-type]


def winner(*trials: Trial, objectives: tuple[ObjectiveSpec, ...] = (ObjectiveSpec(),)) -> tuple[int, tuple[int, ...]]:
    choice = choose(trials, objectives, BASELINE)
    assert choice is not None
    return choice.trial.id, choice.tied


def test_the_fastest_wins_where_intervals_tell_them_apart() -> None:
    assert winner(trial(1, 0.9), trial(2, 0.5), trial(3, 0.7)) == (2, (2,))


def test_overlapping_intervals_are_a_tie_that_bytes_then_id_decide() -> None:
    assert winner(trial(1, 0.52, size=600), trial(2, 0.5, size=500), trial(3, 0.51, size=500)) == (2, (1, 2, 3))
    assert winner(trial(1, 0.51), trial(2, 0.5)) == (1, (1, 2))


def test_a_trial_without_latency_wins_only_where_nobody_has_one() -> None:
    assert winner(trial(1), trial(2, 0.99)) == (2, (2,))
    assert winner(trial(2), trial(1)) == (1, (1,))


def test_model_size_is_exact() -> None:
    assert winner(trial(1, 0.5, size=600), trial(2, 0.9, size=599), objectives=(ObjectiveSpec("modelsize"),)) == (
        2,
        (2,),
    )


def test_weights_join_objectives() -> None:
    both = (ObjectiveSpec("performance", 0.5), ObjectiveSpec("modelsize", 0.5))
    assert winner(trial(1, 0.5, size=900), trial(2, 0.6, size=300), objectives=both)[0] == 2


def test_accuracy_as_objective_prefers_the_smaller_loss_in_the_metric_s_direction() -> None:
    a, b = trial(1, accuracy_low=0), trial(2)
    a, b = (Trial(t.id, "s", t.config, "met", accuracy=v, size_bytes=1) for t, v in ((a, 4.1), (b, 4.3)))
    choice = choose([a, b], (ObjectiveSpec("accuracy"),), Baseline(4.0, 1, higher_is_better=False))
    assert choice is not None
    assert choice.trial.id == 1


def test_nothing_to_choose_from() -> None:
    assert choose([], (ObjectiveSpec(),), BASELINE) is None
