"""What may be faster than a config that meets, at the same accuracy: judged before the first success ends the run.

Two things decide about speed that the accuracy says nothing of. Matrix products with approach ``auto`` are often faster
with activations quantized while the model runs than with calibrated ones (MiniLM at batch 1: 0.34 against 0.41 of
fp32), since nothing around them has to be turned to integers; on other models it is the other way round. And some
recipes trade a little accuracy for speed. Both forms are measured, and the best objective wins.
"""

from __future__ import annotations

from collections.abc import Iterator

from distune.space.op_config import FP32, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import StrategyContext
from distune.strategies.op_type_wise import op_type_wise
from distune.strategies.stage import Candidate, Stage

NAME = "faster forms"


def has_faster_forms(space: TuningSpace, context: StrategyContext) -> bool:
    """Whether ``faster_stage`` may have something to try, and latency is an objective at all."""
    objectives = () if context.job is None else context.job.objectives
    if objectives and all(objective.name != "performance" for objective in objectives):
        return False
    both = any({"static", "dynamic"} <= {option.mode for option in op.options} for op in space.ops)
    return both or any(recipe.speeds_up for recipe in space.recipes)


def faster_stage(space: TuningSpace, met: TuningConfig) -> Stage:
    """``met`` and its faster forms; it ends the run where the first success does."""
    return Stage(NAME, [Candidate(met, "what met"), *_forms(space, met)], exit="none", use="best")


def _forms(space: TuningSpace, met: TuningConfig) -> Iterator[Candidate]:
    mixed = next(op_type_wise(space, met, "dynamic"), None)
    if mixed is not None and any(option.mode == "static" for _, option in met.ops):
        static = [name for name, option in mixed.config.ops if option.mode == "static"]
        # Static ops left between dynamic ones would need pairs of their own around them.
        alone = {name: FP32 for name in static if FP32 in space.op[name].options}
        yield Candidate(space.effective(mixed.config.with_ops(alone)), "dynamic")
    for recipe in space.recipes:
        if recipe.speeds_up:
            yield Candidate(
                space.effective(met.with_recipes({recipe.name: recipe.choices[-1]})),
                f"{recipe.name}={recipe.choices[-1]}",
            )
