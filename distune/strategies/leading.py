"""Recipes that are settled before a strategy begins: a list of SmoothQuant alphas is a stage of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from distune.space.tuning_space import TuningSpace
from distune.strategies.default import default_config
from distune.strategies.stage import Candidate, Stage, StageResult


def settle_recipes(space: TuningSpace, judge: Callable[[Stage], Any], tell: Callable[[str], None]) -> TuningSpace:
    """Judge every value of each leading recipe and fix the best one, as a base for whatever comes then.

    A value that meets the criterion ends the run where the first success does; one that only scored best claims
    nothing.

    Args:
        judge: Has a stage judged.
        tell: Is told of values that could not be judged, or scored NaN.

    Returns:
        The space with those recipes fixed. One of which no value scored a number is at its default.
    """
    for recipe in space.leading:
        candidates = []
        for value in recipe.choices:
            config = default_config(space.settled(recipe.name, value), space.sampling_sizes[0])
            candidates.append(Candidate(config, f"{recipe.name}={value}"))
        result: StageResult = judge(Stage(recipe.name, candidates))
        values = {candidate.config.hash: value for candidate, value in zip(candidates, recipe.choices, strict=True)}
        for trial in result.trials:
            if trial.accuracy is None or math.isnan(trial.accuracy):
                reason = trial.reason if trial.accuracy is None else "it scored NaN"
                tell(f"{recipe.name}={values.get(trial.config.hash)} was left out: {reason}")
        found = None if result.best is None else values.get(result.best.config.hash)
        space = space.settled(recipe.name, recipe.default if found is None else found)
    return space
