"""Knapsack: the best mix of a planted instance, with less latency than what falls back by accuracy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest

from distune.errors import UsageError
from distune.space.capability import ModeOptions, Recipe, TensorOptions
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.knapsack import Choices
from distune.strategies.stage import ProbeStage
from distune.trial.messages import Latency
from tests import synthetic
from tests.strategies.harness import PLAIN, AdditiveModel, Played, mixed_space, play

LOSS = {"op0": 0.006, "op1": 0.005, "op2": 0.004, "op3": 0.003, "op4": 0.003, "op5": 0.001, "op6": 0.002, "op7": 0.004}
GAIN = {"op0": 0.20, "op1": 0.03, "op2": 0.10, "op3": 0.05, "op4": 0.09, "op5": 0.02, "op6": 0.01, "op7": 0.11}
"""What seems worst, op0, gains the most: an order by accuracy gives it up first."""
ALLOWED = 0.009
"""The default tolerance of 1% on a baseline of 0.9."""


@dataclass(frozen=True)
class Weighed(AdditiveModel):
    """Every quantized op saves a time of its own; the probe tells the losses badly, by their squares."""

    gain: Mapping[str, float] = field(default_factory=dict)

    def latency(self, config: TuningConfig) -> Latency:
        ratio = 1.0 - sum(self.gain[name] for name in config.quantized_ops)
        return Latency(ratio, ratio, ratio, ratio, 1.0, 1, 1, 10, "host")

    def probe(self, stage: ProbeStage, space: TuningSpace) -> dict[str, float]:
        return {name: 1e4 * score**2 for name, score in super().probe(stage, space).items()}


MODEL = Weighed(LOSS, gain=GAIN)


def optimum() -> float:
    """The lowest latency ratio of all mixes that lose no more than allowed."""
    best = 1.0
    for mix in product((False, True), repeat=len(LOSS)):
        chosen = [name for name, taken in zip(LOSS, mix, strict=True) if taken]
        if sum(LOSS[name] for name in chosen) <= ALLOWED + 1e-12:
            best = min(best, 1.0 - sum(GAIN[name] for name in chosen))
    return best


def ratio(played: Played) -> float:
    assert played.winner is not None
    assert played.winner.latency is not None
    return played.winner.latency.ratio


def test_it_finds_the_optimum_of_a_planted_instance_and_beats_basic() -> None:
    space = mixed_space(8, PLAIN)
    played = play("knapsack", space, MODEL)
    assert ratio(played) == pytest.approx(optimum())
    assert ratio(played) < 0.95 * ratio(play("basic", space, MODEL))
    assert len(played.trials) <= 1 + 8 + 2 * 4  # default, a part for each op, two rounds of four mixes
    assert not any("rounds were over" in told for told in played.told)


def test_every_mix_is_a_config_of_its_own() -> None:
    """So that a trial's config says which mix it was, and no mix that was judged is proposed again."""
    plain = synthetic.space(convs=2, matmuls=1)
    halves = tuple(
        replace(op, options=(*(option for option in op.options if option.is_quantized), OpConfig("bf16"), FP32))
        for op in plain.ops
    )
    kept = Recipe("first_conv_or_matmul_quantization", True, (True, False), fp32_ops=plain.groups["conv0"])
    for space in (
        plain,
        replace(plain, ops=halves),
        replace(plain, ops=(halves[0], *plain.ops[1:])),  # the op that follows it in its group has no bf16
        replace(plain, known_recipes=(kept,), fixed_recipes=((kept.name, False),)),
    ):
        default = space.default()
        choices = Choices.among(space, default)
        mixes = list(product(*(range(len(options)) for options in choices.of.values())))
        assert len({choices.config(mix).hash for mix in mixes}) == len(mixes) >= 16
        assert choices.config(mixes[0]) == default


@pytest.mark.parametrize("parts", [2, 4])
def test_measured_in_parts_it_still_comes_near_and_refits(parts: int) -> None:
    played = play("knapsack", mixed_space(8, PLAIN), MODEL, parts=parts, rounds=12)
    assert ratio(played) <= 1.05 * optimum()


def test_lower_is_better_metrics_are_solved_alike() -> None:
    played = play("knapsack", mixed_space(8, PLAIN), Weighed(LOSS, gain=GAIN, higher_is_better=False))
    assert ratio(played) == pytest.approx(optimum())


def test_an_op_whose_probed_error_is_no_number_is_believed_to_be_the_worst() -> None:
    class Overflowing(Weighed):
        def probe(self, stage: ProbeStage, space: TuningSpace) -> dict[str, float]:
            return {**super().probe(stage, space), "op0": math.nan}

    played = play("knapsack", mixed_space(8, PLAIN), Overflowing({**LOSS, "op0": 0.5}, gain=GAIN), parts=0)
    default, *mixes = (trial.config.quantized_ops for trial in played.trials)
    assert "op0" in default
    assert not any("op0" in quantized for quantized in mixes)


def test_an_integer_variant_that_loses_less_is_taken_instead_of_fp32() -> None:
    static = ModeOptions("static", TensorOptions(("uint8",), ("asym", "sym")), TensorOptions(("int8",)))
    space = mixed_space(4, static)
    default = space.default().by_name["op0"].activation
    costly = AdditiveModel(default_cost=0.0, option_cost=lambda option: 0.02 if option.activation == default else 0.0)
    played = play("knapsack", space, costly)
    assert played.quantized() == {"op0", "op1", "op2", "op3"}


def test_the_same_mixes_are_proposed_however_many_are_judged_ahead() -> None:
    one, many = (play("knapsack", mixed_space(8, PLAIN), MODEL, ahead=ahead) for ahead in (1, 7))
    assert one.hashes == many.hashes


def test_it_ends_when_no_better_mix_is_predicted_or_the_budget_is_spent() -> None:
    free = Weighed(dict.fromkeys(GAIN, 0.0), gain=GAIN)
    played = play("knapsack", mixed_space(8, PLAIN), free, timeout=100)
    assert played.quantized() == set(GAIN)
    assert [stage.name for stage in played.stages] == [
        "default",
        "knapsack, the default's cost",
        "knapsack, parts in fp32",
    ]
    assert len(play("knapsack", mixed_space(8, PLAIN), MODEL, max_trials=6).trials) == 6


def test_settings_are_looked_at_before_anything_runs() -> None:
    wrong: dict[str, Any] = {"rounds": 0}
    with pytest.raises(UsageError, match="rounds must be a whole number"):
        play("knapsack", mixed_space(4, PLAIN), MODEL, **wrong)
