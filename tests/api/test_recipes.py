"""Recipes through ``fit``: a list of alphas is judged first, and what does not meet claims nothing."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import numpy_helper

from distune import quantization
from distune.config import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion
from distune.errors import UsageError
from tests.api.small import Batches, model, run, samples

ALPHAS = {"smooth_quant": True, "smooth_quant_args": {"alpha": [0.2, 0.5, "auto"]}}


def conf(recipes: dict[str, Any], tolerance: float = 0.1, strategy: str = "basic") -> PostTrainingQuantConfig:
    return PostTrainingQuantConfig(
        recipes=recipes,
        calibration_sampling_size=100,
        quant_level=1,
        accuracy_criterion=AccuracyCriterion(tolerable_loss=tolerance),
        tuning_criterion=TuningCriterion(strategy=strategy, max_trials=8),
    )


def accuracy(given: Any) -> float:
    images, labels = samples()
    return float((run(given, images).argmax(1) == labels).mean())


def by_alpha(proto: Any) -> float:
    """Never enough for int8; the better the smaller ``w0`` is, which tells the alphas apart."""
    if not any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        return 1.0
    scale = next(tensor for tensor in proto.graph.initializer if tensor.name.startswith("w0_scale"))
    return 0.5 / (1 + float(numpy_helper.to_array(scale).max()))


@pytest.mark.parametrize("strategy", ["basic", "mse", "random"])
def test_the_alphas_are_a_stage_before_everything_else_and_the_best_one_stays(strategy: str) -> None:
    found = quantization.fit(
        model(), conf(ALPHAS, 0.01, strategy), calib_dataloader=Batches(), eval_func=by_alpha, quiet=True
    )
    assert found.outcome != "met"  # the best alpha fails the criterion and must not claim success
    first = found.result.trials[:3]
    assert [trial.recipes["smooth_quant"] for trial in first] == [0.2, 0.5, "auto"]
    assert {trial.stage for trial in first} == {"smooth_quant"}
    best = max(first, key=lambda trial: trial.accuracy or 0).recipes["smooth_quant"]
    assert {trial.recipes["smooth_quant"] for trial in found.result.trials[3:]} <= {best}


def test_the_first_alpha_that_meets_ends_the_run() -> None:
    found = quantization.fit(model(), conf(ALPHAS), calib_dataloader=Batches(), eval_func=accuracy, quiet=True)
    assert found.outcome == "met"
    assert len(found.result.trials) == 1
    assert found.result.best.accuracy is not None


def test_recipes_work_together() -> None:
    recipes = {"smooth_quant": True, "adaround": True, "weight_correction": True, "cross_layer_equalization": True}
    found = quantization.fit(model(), conf(recipes), calib_dataloader=Batches(), eval_func=accuracy, quiet=True)
    assert found.outcome == "met"
    assert dict(found.q_config.recipes) == {**recipes, "smooth_quant": 0.5}


def test_a_recipe_is_tuned_over_where_a_list_is_given() -> None:
    found = quantization.fit(
        model(), conf({"adaround": [False, True]}, 0.01), calib_dataloader=Batches(), eval_func=by_alpha, quiet=True
    )
    assert {"adaround" in trial.recipes for trial in found.result.trials} == {True, False}


def test_a_recipe_that_the_model_cannot_use_is_an_error() -> None:
    with pytest.raises(UsageError, match="'fast_bias_correction' cannot be used"):
        quantization.fit(
            model(), conf({"fast_bias_correction": True}), calib_dataloader=Batches(), eval_func=accuracy, quiet=True
        )
