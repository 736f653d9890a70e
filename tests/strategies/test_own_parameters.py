"""Parameters of the user's own are part of what samplers choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distune.config.parameters import ParameterSpec
from distune.space.op_config import TuningConfig
from distune.strategies.registry import strategies
from distune.strategies.search_space import SearchSpace
from distune.strategies.sigopt import Coding
from distune.strategies.sigopt_service import environment
from distune.strategies.sigopt_service.experiment import Suggestion
from tests.strategies.harness import PLAIN, AdditiveModel, play, space

CUT = ParameterSpec("cut", "double", low=0.001, high=1.0, log=True, default=0.5)
KIND = ParameterSpec("kind", "categorical", ("a", "b"))
DEPTH = ParameterSpec("depth", "int", low=1, high=4)
SPACE = replace(space({"op0": "Conv"}, PLAIN), parameters=(CUT, KIND, DEPTH))


class Tunable(AdditiveModel):
    """Loses accuracy with the distance of ``depth`` from 3, and all of it with kind a."""

    def error(self, config: TuningConfig) -> float:
        own = dict(config.parameters)
        return super().error(config) + 0.1 * abs(int(own["depth"]) - 3) + (0.5 if own["kind"] == "a" else 0.0)


def test_the_default_config_has_the_defaults() -> None:
    assert dict(SPACE.default().parameters) == {"cut": 0.5, "kind": "a", "depth": 1}


@pytest.mark.parametrize("name", ["random", "tpe", "bayesian"])
def test_samplers_choose_them(name: str) -> None:
    played = play(name, SPACE, Tunable(), max_trials=40, timeout=1.0)
    assert played.winner is not None
    own = dict(played.winner.config.parameters)
    assert (own["kind"], own["depth"]) == ("b", 3)
    assert len(set(played.hashes)) == len(played.hashes) == 40


def test_exhaustive_goes_through_their_grid() -> None:
    grid = replace(SPACE, parameters=(KIND, DEPTH))
    played = play("exhaustive", grid, Tunable(), max_trials=100, timeout=1.0)
    assert {trial.config.parameters for trial in played.trials} == {
        (("depth", depth), ("kind", kind)) for depth in (1, 2, 3, 4) for kind in "ab"
    }


def test_which_strategies_tune_them_is_known() -> None:
    able = {name for name, cls in strategies().items() if cls.tunes_parameters}
    assert {"random", "tpe", "bayesian", "exhaustive", "sigopt"} <= able
    assert not able & {"basic", "mse", "mse_v2", "hawq_v2", "conservative", "auto"}


def test_sigopt_gets_them_as_they_are_and_its_values_are_used_exactly() -> None:
    coding = Coding(SearchSpace(SPACE))
    bodies = {body["name"]: body for body in coding.parameters}
    assert bodies["cut"]["bounds"] == {"min": 0.001, "max": 1.0}
    assert bodies["cut"]["transformation"] == "log"
    assert bodies["depth"] == {"name": "depth", "type": "int", "bounds": {"min": 1, "max": 4}}
    assignments: dict[str, Any] = {"cut": 0.0123456789, "kind": "b", "depth": 2}
    config = coding.candidate(Suggestion("1", assignments)).config
    assert dict(config.parameters) == assignments


@pytest.mark.full
def test_sigopt_chooses_them() -> None:
    environment.install()
    played = play("sigopt", SPACE, Tunable(), max_trials=30, timeout=1.0, driver="lite")
    assert played.winner is not None
    assert dict(played.winner.config.parameters)["kind"] == "b"
