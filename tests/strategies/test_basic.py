"""Basic: the order of the stages and the base of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from distune.space.capability import ModeOptions, OpInfo, Recipe, TensorOptions
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.fallback import accumulate
from distune.strategies.stage import StageResult, Trial
from tests import synthetic
from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play


def test_a_second_sampling_size_begins_with_its_own_default() -> None:
    played = play(
        "basic", mixed_space(5, PLAIN, sampling_sizes=(10, 20)), AdditiveModel(default_cost=0.5), max_trials=60
    )
    sizes = {trial.config.sampling_size for trial in played.trials if trial.stage.startswith("instance-wise")}
    assert sizes == {10, 20}


@dataclass(frozen=True)
class Broken(AdditiveModel):
    """Activation ranges by minmax break the model; ``mending`` recipes do as other ranges do."""

    breaks: float = math.nan
    mending: frozenset[str] = frozenset()

    def accuracy(self, config: TuningConfig) -> float:
        tensors = [option.activation for _, option in config.ops if option.activation is not None]
        mended = self.mending & {name for name, _ in config.recipes}
        broken = not mended and any(tensor.algorithm == "minmax" for tensor in tensors)
        return self.breaks if broken else super().accuracy(config)


@pytest.mark.parametrize("breaks", [math.nan, -math.inf])
def test_a_default_that_scores_no_number_gives_way_to_a_base_that_scores_one(breaks: float) -> None:
    played = play("basic", mixed_space(6), Broken({"op1": 0.02}, breaks=breaks))
    assert played.quantized() == {f"op{index}" for index in range(6)} - {"op1"}
    assert all(stage.floor is None or math.isfinite(stage.floor) for stage in played.stages)


def test_recipes_are_tried_one_by_one_where_nothing_before_scored_a_number() -> None:
    recipes = tuple(Recipe(name, False, (False, True)) for name in ("breaks_more", "mends"))

    class Mended(Broken):
        def accuracy(self, config: TuningConfig) -> float:
            return math.nan if "breaks_more" in dict(config.recipes) else super().accuracy(config)

    model = Mended({"op1": 0.02}, mending=frozenset({"mends"}))
    played = play("basic", mixed_space(6, PLAIN, recipes=recipes, known_recipes=recipes), model)
    assert played.quantized() == {f"op{index}" for index in range(6)} - {"op1"}


def test_instance_wise_fallback_orders_the_accumulated_one() -> None:
    model = AdditiveModel({"op1": 0.02, "op3": 0.05}, default_cost=0.0)
    played = play("basic", mixed_space(6, PLAIN), model)
    accumulated = next(stage for stage in played.stages if stage.name.startswith("accumulated"))
    assert accumulated.order[:2] == ("op3", "op1")
    assert played.quantized() == {"op0", "op2", "op4", "op5"}


def test_approach_auto_tries_dynamic_where_static_does_not_meet() -> None:
    dynamic = ModeOptions("dynamic", TensorOptions(("uint8",)), TensorOptions(("int8",)))
    both = (*PLAIN.expand(), *dynamic.expand(), FP32)
    space = TuningSpace(
        (OpInfo("a", "MatMul", both, "a", True), OpInfo("b", "Conv", (*PLAIN.expand(), FP32), "b", True))
    )

    def static_costs(option: OpConfig) -> float:
        return 0.02 if option.mode == "static" else 0.0

    played = play("basic", space, AdditiveModel(default_cost=0.0, option_cost=static_costs), tolerance=0.03)
    assert [trial.stage for trial in played.trials] == ["default", "dynamic"]
    assert played.winner is not None
    assert [option.mode for _, option in played.winner.config.ops] == ["dynamic", "static"]


def test_without_dynamic_options_there_is_no_dynamic_stage() -> None:
    played = play("basic", mixed_space(4, PLAIN), AdditiveModel(default_cost=0.5), max_trials=30)
    assert "dynamic" not in {stage.name for stage in played.stages}


def test_blocks_fall_back_alone_and_then_accumulated_the_most_harmful_first() -> None:
    """No block alone is enough, and neither is any group: the two worst blocks together are."""
    blocks = (("op0", "op1"), ("op2", "op3"), ("op4", "op5"))
    cost = {"op0": 0.001, "op1": 0.001, "op2": 0.01, "op3": 0.01, "op4": 0.02, "op5": 0.02}
    played = play("basic", mixed_space(7, PLAIN, blocks=blocks), AdditiveModel(cost, default_cost=0.0))
    block_trials = [(trial.stage, trial.label) for trial in played.trials if "block" in trial.stage]
    assert block_trials == [
        *(("block-wise fallback to fp32", f"block {index}") for index in range(3)),
        ("accumulated block fallback to fp32", "2 of 3 blocks"),
    ]
    assert played.quantized() == {"op0", "op1", "op6"}
    order = next(stage.order for stage in played.stages if stage.name.startswith("accumulated block"))
    assert order == ("block 2", "block 1", "block 0")


@pytest.mark.parametrize("max_trials", [10, 20, 30])
def test_blocks_leave_trials_for_the_fallback_of_single_groups(max_trials: int) -> None:
    """Each of the four groups at fault is in another block: blocks that meet are most of the model."""
    pairs = tuple((f"op{index}", f"op{index + 1}") for index in range(0, 24, 2))
    model = AdditiveModel(dict.fromkeys(("op1", "op9", "op15", "op23"), 0.01), default_cost=0.00001)
    played = play("basic", mixed_space(25, PLAIN, blocks=pairs), model, max_trials=max_trials)
    assert played.winner is not None
    tried = sum(trial.stage == "block-wise fallback to fp32" for trial in played.trials)
    assert tried > 0
    assert [text.split(":")[0] for text in played.told if " blocks" in text] == [f"12 blocks, trials for {tried}"]


def test_with_few_trials_the_shortest_prefix_is_still_looked_for_between_those_that_were_tried() -> None:
    space = synthetic.space(convs=20, matmuls=0)
    order = [f"conv{index}" for index in range(20)]
    asked: list[int] = []
    generator = accumulate(space, space.default(), order, "fp32", lambda: 9 - len(asked), start=1)
    stage = next(generator)
    while True:
        trials = []
        for candidate in stage.candidates:
            length = sum(not candidate.config.by_name[name].is_quantized for name in order)
            asked.append(length)
            trials.append(Trial(1, "s", candidate.config, "met" if length >= 7 else "not_met", accuracy=0.0))
            if length >= 7:
                break
        met = next((trial for trial in trials if trial.met), None)
        try:
            stage = generator.send(StageResult(tuple(trials), met, None, finished=False))
        except StopIteration:
            break
    assert 7 in asked
    assert len(asked) <= 9
