"""Parameters and metrics of the user's own: what they become, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from distune.config.job import ObjectiveSpec
from distune.config.known import KnownNames
from distune.config.load import load_config
from distune.config.parameters import ParameterSpec
from distune.errors import ConfigError
from tests.config.conftest import Load

HEAD = """\
model: {framework: onnxruntime, path: model.onnx}
quantization: {approach: dynamic}
evaluation: {accuracy: {eval_func: "score.py:accuracy"}}
tuning:
"""


def test_a_double_is_searched_evenly_in_its_logarithm_with_its_default_among_the_values() -> None:
    spec = ParameterSpec("lr", "double", low=1e-4, high=1.0, log=True, default=0.3)
    values = [float(value) for value in spec.choices]
    assert (values[0], values[-1]) == (1e-4, 1.0)
    assert 0.3 in values
    assert sum(value < 1e-2 for value in values) == pytest.approx(len(values) / 2, abs=2)
    assert spec.choices[spec.nearest(0.3)] == 0.3


def test_whole_numbers_and_grids_are_exact() -> None:
    assert ParameterSpec("n", "int", low=8, high=11).choices == (8, 9, 10, 11)
    assert len(ParameterSpec("n", "int", low=1, high=10**9).choices) <= 1002
    grid = ParameterSpec("l2", "double", (1e-5, 1e-3, 0.33), log=True)
    assert grid.choices == (1e-5, 1e-3, 0.33)
    assert grid.from_sigopt(9.999999e-4) == 1e-3


def test_the_section_of_a_sigopt_file_is_understood(load: Load) -> None:
    job = load(
        HEAD
        + """\
  budget: 7
  parameters:
    - {name: batch_size, type: int, bounds: {min: 8, max: 32}}
    - {name: optimizer, type: categorical, categorical_values: [Adam, SGD]}
    - {name: l2, type: double, grid: [1e-5, 1e-3, 0.33], transformation: log}
    - name: lr
      bounds:
      type: double
      min: 0.00001
      max: 0.1
  metrics:
    - {name: error, objective: minimize, strategy: constraint, threshold: 0.2}
    - f1
    - {name: latency, objective: minimize}
    - {name: note, strategy: store}
"""
    ).job()
    assert [(spec.name, spec.kind) for spec in job.parameters] == [
        ("batch_size", "int"),
        ("optimizer", "categorical"),
        ("l2", "double"),
        ("lr", "double"),
    ]
    assert job.parameters[2].values == (1e-5, 1e-3, 0.33)
    assert job.parameters[3].high == 0.1
    assert job.exit_policy.max_trials == 7
    assert (job.criterion.kind, job.criterion.tolerance, job.criterion.higher_is_better) == ("threshold", 0.2, False)
    assert job.objectives == (
        ObjectiveSpec("metric", metric="f1", higher_is_better=True),
        ObjectiveSpec("performance"),
    )
    assert job.evaluation.names == ("error", "f1", "note")
    assert not job.stops_at_first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: 5\n  exit_policy: {max_trials: 5}", "say the same"),
        (
            "accuracy_criterion: {relative: 0.1}\n  metrics: [{name: a, strategy: constraint, threshold: 1}]",
            "'accuracy_criterion' say the same",
        ),
        ("objective: modelsize\n  metrics: [a]", "'objective' say the same"),
        ("metrics: [{name: a, strategy: constraint}]", "a constraint needs a threshold"),
        ("metrics: [{name: a, threshold: 1}]", "only a metric with strategy: constraint"),
        ("metrics: [{name: latency}]", "add objective: minimize"),
        ("metrics: [a, a]", "'a' is given twice"),
        ("parameters: [{name: a, type: int}]", "takes bounds or grid"),
        ("parameters: [{name: a, type: categorical, bounds: {min: 1, max: 2}}]", "takes categorical_values"),
        ("parameters: [{name: a, type: int, bounds: {min: 2, max: 1}}]", "min must be below max"),
        ("parameters: [{name: a, type: int, grid: [1.5, 2]}]", "whole numbers"),
        (
            "parameters: [{name: a, type: double, transformation: log, bounds: {min: 0, max: 1}}]",
            "needs values above 0",
        ),
        ("parameters: [{name: a, type: int, default: 9, bounds: {min: 1, max: 2}}]", "9 is no value"),
        ("parameters: [{name: a, type: double, grid: [x, y]}]", "expected a number"),
    ],
)
def test_what_is_wrong_is_said(load: Load, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(HEAD + "  " + text).job()


def test_exhaustive_needs_a_grid(folder: Path) -> None:
    text = "strategy: exhaustive\n  parameters: [{name: a, type: double, bounds: {min: 1, max: 2}}]"
    (folder / "cfg.yaml").write_text(HEAD + "  " + text, encoding="utf-8")
    known = KnownNames(strategies={"exhaustive": frozenset()})
    with pytest.raises(ConfigError, match="exhaustive goes through a grid"):
        load_config(folder / "cfg.yaml", (), known, {})
