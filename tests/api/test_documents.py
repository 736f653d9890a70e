"""The Python examples of INC's page on tuning strategies run after changing their import line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distune import quantization
from distune.config import AccuracyCriterion, PostTrainingQuantConfig
from distune.strategies.registry import _STRATEGIES
from tests.api.small import Batches, model, score

IMPORTS = "from neural_compressor.config import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion\n"
EXAMPLES = {
    "exit policy": """
tuning_criterion = TuningCriterion(
    timeout=0,  # optional. tuning timeout (seconds). When set to 0, early stopping is enabled.
    max_trials=100,  # optional. max tuning times. combined with the `timeout` field to decide when to exit tuning.
    strategy="basic",  # optional. name of the tuning strategy.
    strategy_kwargs=None,  # optional. see concrete tuning strategy for available settings.
)
conf = PostTrainingQuantConfig(tuning_criterion=tuning_criterion)
""",
    "accuracy criterion": """
accuracy_criterion = AccuracyCriterion(
    higher_is_better=True,  # optional.
    criterion="relative",  # optional. Available values are 'relative' and 'absolute'.
    tolerable_loss=0.01,  # optional.
)
conf = PostTrainingQuantConfig(accuracy_criterion=accuracy_criterion)
""",
    "auto": """
conf = PostTrainingQuantConfig(
    quant_level="auto",  # optional, the quantization level.
    tuning_criterion=TuningCriterion(
        timeout=0,  # optional. tuning timeout (seconds). When set to 0, early stopping is enabled.
        max_trials=100,  # optional. max tuning times. combined with the `timeout` field to decide when to exit tuning.
    ),
)
""",
    "conservative": """
conf = PostTrainingQuantConfig(
    quant_level=0,  # the quantization level.
    tuning_criterion=TuningCriterion(timeout=0, max_trials=100),
)
""",
    **{
        name: f"""
conf = PostTrainingQuantConfig(quant_level=1, tuning_criterion=TuningCriterion(strategy="{name}"))
"""
        for name in ("basic", "mse", "exhaustive", "random", "tpe")
    },
    "mse_v2": """
conf = PostTrainingQuantConfig(
    quant_level=1,
    tuning_criterion=TuningCriterion(
        strategy="mse_v2",
        strategy_kwargs={"confidence_batches": 2},  # optional. the number of batches to score the op impact.
    ),
)
""",
    "bayesian": """
conf = PostTrainingQuantConfig(
    quant_level=1,
    tuning_criterion=TuningCriterion(
        timeout=0,  # optional. tuning timeout (seconds). When set to 0, early stopping is enabled.
        max_trials=100,  # optional. max tuning times. combined with the `timeout` field to decide when to exit tuning.
        strategy="bayesian",
    ),
)
""",
}
CONFIGS_ONLY = {
    "hawq_v2": """
def model_loss(output, target, criterion):
    return criterion(output, target)


conf = PostTrainingQuantConfig(
    quant_level=1,
    tuning_criterion=TuningCriterion(
        strategy="hawq_v2",
        strategy_kwargs={"hawq_v2_loss": model_loss},  # required. the loss function for calculating the hessian trace.
    ),
)
""",
    "sigopt": """
conf = PostTrainingQuantConfig(
    quant_level=1,
    tuning_criterion=TuningCriterion(
        strategy="sigopt",
        strategy_kwargs={
            "sigopt_api_token": "YOUR-ACCOUNT-API-TOKEN",
            "sigopt_project_id": "PROJECT-ID",
            "sigopt_experiment_name": "nc-tune",
        },
    ),
)
""",
}


def conf_of(text: str) -> PostTrainingQuantConfig:
    namespace: dict[str, Any] = {"__name__": "example"}
    exec((IMPORTS + text).replace("neural_compressor", "distune"), namespace)
    found = namespace["conf"]
    assert isinstance(found, PostTrainingQuantConfig)
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_tune(name: str) -> None:
    conf = conf_of(EXAMPLES[name])
    conf.accuracy_criterion.tolerable_loss = 0.1  # three small MatMuls do not keep 99% in int8
    found = quantization.fit(model(), conf, calib_dataloader=Batches(), eval_func=score, quiet=True)
    assert found.outcome == "met"
    assert found.q_config.quantized_ops


@pytest.mark.parametrize("name", CONFIGS_ONLY)
def test_examples_that_need_more_than_this_machine_are_valid(name: str) -> None:
    assert conf_of(CONFIGS_ONLY[name]).tuning_criterion.strategy == name


STRATEGY = """
from neural_compressor.strategy import TuneStrategy, strategy_registry

@strategy_registry
class AbcTuneStrategy(TuneStrategy):
    def __init__(self, model, conf, q_dataloader, q_func=None, eval_dataloader=None, eval_func=None, dicts=None):
        CONSTRUCTED

    def next_tune_cfg(self):
        yield self.space.default()
        yield self.space.fp32()

    def traverse(self):
        for tune_cfg in self.next_tune_cfg():
            trial = self.judge(tune_cfg)
            log.append((tune_cfg, trial.accuracy))
            if trial.met:
                return
"""


@pytest.mark.parametrize(
    "constructed",
    [
        "...",
        "super().__init__(model, conf, q_dataloader, q_func, eval_dataloader, eval_func, dicts)",
        "self.seen = (model, conf.seed, q_dataloader, eval_func); log.append(eval_func is not None)",
    ],
)
def test_a_strategy_with_the_constructor_and_the_traverse_of_the_page(constructed: str, tmp_path: Path) -> None:
    log: list[Any] = []
    text = STRATEGY.replace("CONSTRUCTED", constructed).replace("neural_compressor", "distune")
    try:
        exec(text, {"__name__": "user_strategy", "log": log})
        conf = conf_of(EXAMPLES["basic"].replace("basic", "abc"))
        conf.accuracy_criterion = AccuracyCriterion(tolerable_loss=0.1)
        found = quantization.fit(model(), conf, calib_dataloader=Batches(), eval_func=score, quiet=True)
    finally:
        _STRATEGIES.pop("abc", None)
    assert found
    config, accuracy = log[-1]
    assert (config, accuracy) == (found.q_config, found.accuracy)
    assert found.result.strategy == "abc"


def test_a_strategy_that_ends_its_own_way_when_the_run_is_over() -> None:
    """It goes on asking after the budget is spent: the run ends all the same."""
    text = STRATEGY.replace("CONSTRUCTED", "...").replace("if trial.met", "if False")
    try:
        exec(text.replace("neural_compressor", "distune"), {"__name__": "user_strategy", "log": []})
        conf = conf_of(EXAMPLES["basic"].replace("basic", "abc"))
        conf.tuning_criterion.max_trials = 1
        found = quantization.fit(model(), conf, calib_dataloader=Batches(), eval_func=lambda proto: 1.0, quiet=True)
    finally:
        _STRATEGIES.pop("abc", None)
    assert found
    assert len(found.trials) == 1
