"""What every registered strategy keeps, whatever it is given."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distune.evaluation.criterion import meets
from distune.strategies.registry import strategies
from tests.strategies.harness import PLAIN, STATIC, AdditiveModel, Played, mixed_space, play


def loss(output: object, target: object) -> float:
    return 0.0


REQUIRED: dict[str, dict[str, Any]] = {"hawq_v2": {"hawq_v2_loss": loss}}
OUTSIDE = {"sigopt"}
"""Strategies whose answers come from a service: their own tests have it."""

NAMES = sorted(
    name for name, cls in strategies().items() if cls.__module__.startswith("distune.") and name not in OUTSIDE
)
FALLBACK = ["auto", "basic", "conservative", "hawq_v2", "knapsack", "mse", "mse_v2"]
EASY = AdditiveModel(default_cost=0.0)
PLANTED = AdditiveModel({"op3": 0.3}, default_cost=0.0001)
IMPOSSIBLE = AdditiveModel(default_cost=0.5)
LOWER = AdditiveModel({"op3": 0.3}, default_cost=0.0001, higher_is_better=False)


def run(name: str, model: AdditiveModel, count: int = 6, max_trials: int = 12, **more: Any) -> Played:
    return play(
        name,
        mixed_space(count, PLAIN if count < 4 else STATIC),
        model,
        max_trials=max_trials,
        **REQUIRED.get(name, {}),
        **more,
    )


def check(played: Played, model: AdditiveModel, max_trials: int) -> None:
    """What holds for every run."""
    assert len(played.trials) <= max_trials
    assert len(set(played.hashes)) == len(played.hashes)
    for trial in played.book.met:
        assert meets(model.accuracy(trial.config), played.book.target, model.higher_is_better)
        assert not trial.config.is_fp32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [EASY, PLANTED, IMPOSSIBLE, LOWER], ids=["easy", "planted", "impossible", "lower"])
@pytest.mark.parametrize("max_trials", [1, 3, 12])
def test_ends_within_its_budget_without_repeats(name: str, model: AdditiveModel, max_trials: int) -> None:
    check(run(name, model, max_trials=max_trials), model, max_trials)


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_space_ends_by_itself(name: str) -> None:
    played = run(name, IMPOSSIBLE, count=2, max_trials=100)
    check(played, IMPOSSIBLE, 100)
    assert len(played.trials) <= 5
    assert played.winner is None


@pytest.mark.parametrize("name", NAMES)
def test_an_easy_model_is_quantized_in_full(name: str) -> None:
    played = run(name, EASY)
    assert played.winner is not None
    assert played.quantized() == {f"op{index}" for index in range(6)}


@pytest.mark.parametrize("name", FALLBACK)
@pytest.mark.parametrize("model", [PLANTED, LOWER], ids=["higher", "lower"])
def test_strategies_with_fallback_keep_the_planted_op_in_fp32(name: str, model: AdditiveModel) -> None:
    played = run(name, model, max_trials=40)
    assert "op3" not in played.quantized()
    if name != "conservative":  # which works by type, and keeps the other convolution as well
        assert len(played.quantized()) == 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ahead", [3, 8])
def test_more_workers_change_nothing(name: str, ahead: int) -> None:
    one, many = run(name, PLANTED), run(name, PLANTED, ahead=ahead)
    assert [(trial.id, trial.config.hash, trial.label) for trial in one.trials] == [
        (trial.id, trial.config.hash, trial.label) for trial in many.trials
    ]
    assert [stage.name for stage in one.stages] == [stage.name for stage in many.stages]
    assert [stage.order for stage in one.stages] == [stage.order for stage in many.stages]


@pytest.mark.parametrize("name", NAMES)
def test_twice_the_same_with_the_same_seed(name: str) -> None:
    assert run(name, IMPOSSIBLE, seed=7).hashes == run(name, IMPOSSIBLE, seed=7).hashes


@pytest.mark.parametrize("name", NAMES)
def test_with_a_timeout_it_looks_beyond_the_first_success_and_still_ends(name: str) -> None:
    played = run(name, EASY, timeout=100)
    check(played, EASY, 12)
    assert played.winner is not None


CHEAP = [name for name in NAMES if name != "bayesian"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(CHEAP),
    costs=st.dictionaries(st.integers(0, 6).map("op{}".format), st.sampled_from([0.0, 0.003, 0.01, 0.3, -0.01])),
    count=st.integers(2, 7),
    rich=st.booleans(),
    sizes=st.sampled_from([(100,), (10, 20)]),
    max_trials=st.integers(1, 40),
    timeout=st.sampled_from([0, 100]),
    tolerance=st.sampled_from([0.0, 0.01, 0.05]),
    higher_is_better=st.booleans(),
    ahead=st.integers(1, 9),
)
def test_any_run_ends_keeps_its_budget_and_accepts_only_what_meets(
    name: str,
    costs: dict[str, float],
    count: int,
    rich: bool,
    sizes: tuple[int, ...],
    max_trials: int,
    timeout: int,
    tolerance: float,
    higher_is_better: bool,
    ahead: int,
) -> None:
    model = AdditiveModel(costs, default_cost=0.002, higher_is_better=higher_is_better)
    space = mixed_space(count, STATIC if rich else PLAIN, sampling_sizes=sizes)
    played = play(
        name,
        space,
        model,
        max_trials=max_trials,
        timeout=timeout,
        tolerance=tolerance,
        ahead=ahead,
        **REQUIRED.get(name, {}),
    )
    check(played, model, max_trials)
