"""What comes before fallback: corrections where the default fails, faster forms of it where it meets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest

from distune.config.job import ModelSpec, TuningJob
from distune.engine.book import TrialBook
from distune.space.capability import ModeOptions, OpInfo, Recipe, TensorOptions
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import StrategyContext
from distune.strategies.corrections import correction_stage
from distune.strategies.stage import Candidate
from distune.trial.messages import Latency
from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play

RECIPES = tuple(
    Recipe(name, False, (False,)) for name in ("adaround", "cross_layer_equalization", "fast_bias_correction")
)
DYNAMIC = ModeOptions("dynamic", TensorOptions(("uint8",)), TensorOptions(("int8",)))


@dataclass(frozen=True)
class Corrected(AdditiveModel):
    """Recipes take part of the error away; dynamic ops take a third of the time, static ones a half."""

    mends: frozenset[str] = field(default_factory=frozenset)

    def error(self, config: TuningConfig) -> float:
        return 0.0 if self.mends & {name for name, _ in config.recipes} else super().error(config)

    def latency(self, config: TuningConfig) -> Latency:
        share = {"static": 0.5, "dynamic": 0.3, "fp32": 1.0}
        ratio = sum(share[option.mode] for _, option in config.ops) / len(config.ops)
        return replace(super().latency(config), ratio=ratio, ci_low=ratio, ci_high=ratio)


@pytest.mark.parametrize("strategy", ["basic", "auto"])
def test_a_correction_that_meets_keeps_every_op_quantized(strategy: str) -> None:
    model = Corrected({"op1": 0.3}, mends=frozenset({"fast_bias_correction"}))
    played = play(strategy, mixed_space(6, PLAIN, known_recipes=RECIPES), model)
    assert [(trial.stage, trial.label) for trial in played.trials] == [
        ("default", "default"),
        ("corrections", "fast_bias_correction"),
    ]
    assert played.quantized() == {f"op{index}" for index in range(6)}


def test_equalization_and_rounding_are_tried_where_there_are_convolutions_only() -> None:
    def labels(kinds: tuple[str, ...]) -> list[str]:
        ops = tuple(OpInfo(kind, kind, (*PLAIN.expand(), FP32), kind, True) for kind in kinds)
        played = play("basic", TuningSpace(ops, known_recipes=RECIPES), Corrected(default_cost=0.5), max_trials=60)
        return [trial.label for trial in played.trials if trial.stage == "corrections"]

    first = "fast_bias_correction"
    assert labels(("MatMul", "Add")) == [first]
    assert labels(("Conv", "MatMul")) == [first, f"cross_layer_equalization and {first}", f"adaround and {first}"]


def test_what_the_user_settled_is_left_alone() -> None:
    space = mixed_space(4, PLAIN, known_recipes=RECIPES)
    off: dict[str, bool] = {recipe.name: False for recipe in RECIPES}
    for recipes, expected in (({}, 3), ({"adaround": False}, 2), (off, 0)):
        job = TuningJob(ModelSpec("onnxruntime"), recipes=recipes)
        context = StrategyContext(TrialBook(100), job=job)
        assert len(list(correction_stage(space, context, space.default()).candidates)) == expected


def test_a_recipe_is_settled_at_its_default_where_every_value_scores_nan() -> None:
    class Overflowing(AdditiveModel):
        def accuracy(self, config: TuningConfig) -> float:
            return math.nan if "smooth_quant" in dict(config.recipes) else super().accuracy(config)

    alphas = Recipe("smooth_quant", False, (0.3, 0.7), leads=True)
    space = mixed_space(4, PLAIN, recipes=(alphas,), known_recipes=(alphas,))
    played = play("basic", space, Overflowing(default_cost=0.0))
    assert [trial.stage for trial in played.trials] == ["smooth_quant", "smooth_quant", "default"]
    assert played.quantized() == {f"op{index}" for index in range(4)}
    assert played.told == [f"smooth_quant={alpha} was left out: it scored NaN" for alpha in (0.3, 0.7)]


def both_modes() -> TuningSpace:
    both = (*PLAIN.expand(), *DYNAMIC.expand(), FP32)
    ops = tuple(OpInfo(name, "MatMul", both, name, True) for name in "abc")
    return TuningSpace((*ops, OpInfo("scores", "MatMul", (*PLAIN.expand(), FP32), "scores")))


@pytest.mark.parametrize("strategy", ["basic", "auto"])
@pytest.mark.parametrize("ahead", [1, 3])
def test_with_approach_auto_the_faster_of_static_and_dynamic_wins(strategy: str, ahead: int) -> None:
    played = play(strategy, both_modes(), Corrected(default_cost=0.0), ahead=ahead)
    assert [(trial.stage, trial.label) for trial in played.trials] == [
        ("default", "default"),
        ("faster forms", "dynamic"),
    ]
    assert played.winner is not None
    assert [option.mode for _, option in played.winner.config.ops] == ["dynamic"] * 3 + ["fp32"]


def test_a_dynamic_form_that_fails_leaves_the_static_one() -> None:
    def dynamic_costs(option: OpConfig) -> float:
        return 0.5 if option.mode == "dynamic" else 0.0

    played = play("basic", both_modes(), Corrected(default_cost=0.0, option_cost=dynamic_costs))
    assert [trial.met for trial in played.trials] == [True, False]
    assert played.winner is not None
    assert played.winner.label == "default"


def test_a_recipe_that_speeds_up_is_judged_after_what_met() -> None:
    level = Recipe("accuracy_level", 0, (0, 4), speeds_up=True)
    played = play("basic", mixed_space(3, PLAIN, recipes=(level,), known_recipes=(level,)), Corrected(default_cost=0.0))
    assert [dict(trial.config.recipes) for trial in played.trials] == [{}, {"accuracy_level": 4}]
    stage = next(stage for stage in played.stages if stage.name == "faster forms")
    assert [c.label for c in stage.candidates if isinstance(c, Candidate)] == ["what met", "accuracy_level=4"]
