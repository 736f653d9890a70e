"""What a trial changed is said in words, against the trial that it differs from least."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distune.report.changes import Changes
from distune.space.op_config import TensorConfig
from distune.strategies.stage import Trial
from tests.report.fabricated import INT8, NAMES, SPACE, trial


def changes(accuracy: float = 0.8, higher_is_better: bool = True) -> Changes:
    found = Changes()
    found.use(SPACE)
    found.baseline(accuracy, higher_is_better)
    return found


def test_an_op_alone_is_compared_with_the_base_of_its_stage() -> None:
    told = changes()
    first = trial(1, "default", 0.70)
    assert told.sentence(first) == ""
    told.start_stage(first)
    assert told.sentence(trial(2, "one", 0.708, "conv1")) == "conv1 back to fp32: +0.8 points"
    assert told.sentence(trial(3, "one", 0.6999, "fc")) == "fc back to fp32: -0.01 points"


def test_what_differs_in_an_option_of_every_op_is_no_base() -> None:
    told = changes()
    first = trial(1, "default", 0.60)
    told.sentence(first)
    other = replace(INT8, weight=TensorConfig("int8", "asym"))
    per_tensor = replace(first, config=first.config.with_ops(dict.fromkeys(NAMES, other)), accuracy=0.90)
    told.start_stage(per_tensor)
    assert told.sentence(trial(2, "one", 0.61, "conv1")) == "conv1 back to fp32: +1.0 points"


def test_several_ops_are_compared_with_the_best_before_them() -> None:
    told = changes()
    told.sentence(trial(1, "default", 0.70))
    told.start_stage(trial(2, "one", 0.75, "conv1"))
    assert told.sentence(trial(3, "two", 0.76, "conv1", "fc")) == "fc back to fp32: +1.0 points"


def test_an_op_that_is_given_back_goes_to_integers() -> None:
    told = changes()
    told.start_stage(trial(1, "all", 0.79, "conv1", "fc", "conv2_dw"))
    assert told.sentence(trial(2, "give back", 0.78, "conv1", "fc")) == "conv2_dw to integers: -1.0 points"


def test_many_ops_are_counted_and_groups_named_once() -> None:
    told = changes()
    told.start_stage(trial(1, "default", 0.7))
    assert told.sentence(trial(2, "x", 0.8, "conv2_pw", "relu")) == "conv2_pw back to fp32: +10.0 points"
    assert told.sentence(trial(3, "x", 0.8, "conv1", "conv2_dw", "conv2_pw", "fc")).startswith("4 ops back to fp32")


def test_a_loss_is_told_in_its_own_unit() -> None:
    told = changes(4.38, higher_is_better=False)
    told.start_stage(trial(1, "default", 4.5))
    assert told.sentence(trial(2, "x", 4.4, "fc")) == "fc back to fp32: 0.1 better"


@pytest.mark.parametrize("known", [replace(trial(2, "x", None, "fc"), label="fc"), trial(2, "x", None, "fc")])
def test_of_a_trial_without_accuracy_no_gain_is_told(known: Trial) -> None:
    told = changes()
    told.start_stage(trial(1, "default", 0.7))
    assert told.sentence(known) == "fc back to fp32"


def test_a_recipe_has_only_its_label() -> None:
    told = changes()
    told.start_stage(trial(1, "default", 0.7))
    other = trial(2, "recipes", 0.8)
    recipe = replace(other, config=other.config.with_recipes({"smooth_quant": True}), label="smooth_quant=True")
    assert told.sentence(recipe) == "smooth_quant=True"
