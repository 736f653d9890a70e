"""Exhaustive, random, tpe and bayesian: they end, never repeat, and look for what is asked."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pytest

from distune.errors import MissingExtraError, UsageError
from distune.space.capability import ModeOptions, TensorOptions
from distune.space.op_config import OpConfig, TuningConfig
from distune.trial.messages import Latency
from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play

HOPELESS = AdditiveModel(default_cost=0.5)
SAMPLERS = ["random", "tpe", "bayesian"]
TWO = ModeOptions("static", TensorOptions(("uint8",), ("asym", "sym")), TensorOptions(("int8",)))


@pytest.mark.parametrize("strategy", ["exhaustive", *SAMPLERS])
def test_a_space_of_four_configs_ends_after_four_trials(strategy: str) -> None:
    played = play(strategy, mixed_space(2, TWO), HOPELESS)
    assert len(played.trials) == 4
    assert played.told == ["space exhausted: every tuning config was judged"]


@pytest.mark.parametrize("strategy", SAMPLERS)
def test_a_space_without_a_choice_ends_after_one_trial(strategy: str) -> None:
    assert len(play(strategy, mixed_space(5, PLAIN), HOPELESS).trials) == 1


@pytest.mark.parametrize("strategy", ["exhaustive", "random", "tpe"])
def test_a_wide_space_starts_at_once(strategy: str) -> None:
    start = time.monotonic()
    played = play(strategy, mixed_space(60), AdditiveModel(default_cost=0.0))
    assert len(played.trials) == 1
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_the_seed_decides(strategy: str) -> None:
    runs = [play(strategy, mixed_space(8), HOPELESS, max_trials=20, seed=seed).hashes for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_random_explores() -> None:
    """The ancestor judged one config over and over."""
    assert len(set(play("random", mixed_space(12), HOPELESS, max_trials=12).hashes)) == 12


class Choosy(AdditiveModel):
    """``sym`` costs accuracy and ``kl`` is fast: a latency that the options decide."""

    def latency(self, config: TuningConfig) -> Latency:
        fast = sum(option.activation is not None and option.activation.algorithm == "kl" for _, option in config.ops)
        ratio = 1.0 - 0.1 * fast
        return replace(super().latency(config), ratio=ratio, ci_low=ratio, ci_high=ratio)


def sym_costs(option: OpConfig) -> float:
    return 0.02 if option.activation is not None and option.activation.scheme == "sym" else 0.0


def test_tpe_minimises_latency_among_what_meets() -> None:
    model = Choosy(default_cost=0.0, option_cost=sym_costs)
    tpe = play("tpe", mixed_space(5), model, timeout=1, max_trials=60)
    assert tpe.winner is not None
    assert tpe.winner.latency is not None
    assert tpe.winner.latency.ratio <= 0.6  # of five ops, at least four are the fast ones
    assert len(tpe.book.met) >= 6  # of 60 random ones two would meet


def test_target_accuracy_looks_for_accuracy_alone() -> None:
    model = Choosy(default_cost=0.01, option_cost=sym_costs)
    played = play("tpe", mixed_space(5), model, timeout=1, max_trials=60, target="accuracy")
    accuracies = [trial.accuracy for trial in played.trials if trial.accuracy is not None]
    assert sum(accuracies[30:]) / 30 > sum(accuracies[:10]) / 10


def test_lower_is_better_is_minimised() -> None:
    model = AdditiveModel(default_cost=0.01, option_cost=sym_costs, higher_is_better=False)
    played = play("tpe", mixed_space(5), model, timeout=1, max_trials=60, target="accuracy")
    losses = [trial.accuracy for trial in played.trials if trial.accuracy is not None]
    assert sum(losses[30:]) / 30 < sum(losses[:10]) / 10


def test_fallback_adds_fp32_to_the_options() -> None:
    planted = AdditiveModel({"op1": 0.3}, default_cost=0.0)
    assert play("exhaustive", mixed_space(3, PLAIN), planted).winner is None
    assert play("exhaustive", mixed_space(3, PLAIN), planted, fallback=True).quantized() == {"op0", "op2"}


def test_batches_are_of_the_set_size() -> None:
    played = play("tpe", mixed_space(6), HOPELESS, max_trials=10, batch_size=3)
    assert [stage.total or len(list(stage.candidates)) for stage in played.stages] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"target": "speed"}, "target must be one of objective, accuracy"),
        ({"fallback": "yes"}, "fallback must be true or false"),
        ({"batchsize": 2}, "did you mean 'batch_size'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        play("tpe", mixed_space(3), HOPELESS, **kwargs)


@pytest.mark.parametrize(("strategy", "package"), [("tpe", "optuna"), ("bayesian", "torch")])
def test_a_missing_library_is_named_with_its_extra(
    strategy: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=package):
        play(strategy, mixed_space(3), HOPELESS)


@pytest.mark.filterwarnings("error")
def test_nothing_of_optuna_reaches_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    play("bayesian", mixed_space(2, TWO), HOPELESS)
    play("tpe", mixed_space(3), HOPELESS, max_trials=20)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.full
def test_bayesian_finds_a_fast_config_that_meets() -> None:
    model = Choosy(default_cost=0.0, option_cost=sym_costs)
    played = play("bayesian", mixed_space(4), model, timeout=1, max_trials=24)
    assert played.winner is not None
    assert played.winner.latency is not None
    assert played.winner.latency.ratio <= 0.7
