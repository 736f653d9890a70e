"""Tuning a script of the user's own by a sigopt.yml."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import distune
from distune.cli.main import main
from distune.config.job import StrategySpec
from distune.errors import ConfigError, UsageError
from distune.script.file import load_experiment
from distune.script.process import ScriptTrial
from distune.script.study import tune_script
from distune.strategies.sigopt_service import environment

FILE = """\
name: toy
parameters:
- name: x
  type: double
  bounds: {min: -1.0, max: 1.0}
- name: kind
  type: categorical
  categorical_values: ["good", "bad"]
- name: depth
  type: int
  grid: [3, 5, 7]
metrics:
- name: quality
  objective: maximize
- {name: cost, objective: minimize, strategy: constraint, threshold: 5}
budget: 12
parallel_bandwidth: 2
"""

SCRIPT = """\
import distune
x = distune.get_parameter("x", default=0.5)
depth = distune.get_parameter("depth", default=3)
if distune.get_parameter("kind", default="good") == "bad":
    raise ValueError("no good")
distune.log_metric("quality", 1 - (x - 0.2) ** 2)
distune.log_metric(name="cost", value=depth)
"""


def judged(values: dict[str, Any]) -> ScriptTrial:
    if values["kind"] == "bad":
        return ScriptTrial(failure="no good")
    return ScriptTrial({"quality": 1 - (values["x"] - 0.2) ** 2, "cost": values["depth"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sigopt.yml").write_text(FILE)
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    arguments = ["run", *words, "--sigopt-file", str(folder / "sigopt.yml"), "--workspace", str(folder / "out")]
    code = main(arguments)
    return code, json.loads((folder / "out" / "experiment.json").read_text())


def test_a_script_is_run_once_a_trial_and_its_metrics_decide(folder: Path) -> None:
    code, found = run(folder, str(folder / "train.py"), "--strategy", "random")
    assert code == 0
    assert len(found["trials"]) == 12
    assert {trial["verdict"] for trial in found["trials"]} <= {"met", "not_met", "failed"}
    good = [trial for trial in found["trials"] if trial["verdict"] == "met"]
    best = next(trial for trial in good if trial["id"] == found["best"])
    assert best["metrics"]["quality"] == max(trial["metrics"]["quality"] for trial in good)
    assert best["parameters"]["kind"] == "good"
    assert best["parameters"]["depth"] <= 5
    assert any("no good" in trial["reason"] for trial in found["trials"] if trial["verdict"] == "failed")
    assert all(trial["host"] for trial in found["trials"])


def test_a_function_gets_the_parameters_by_keyword(folder: Path) -> None:
    (folder / "mine.py").write_text("def tune(x, kind, depth):\n    return {'quality': x, 'cost': depth}\n")
    code, found = run(folder, f"{folder / 'mine.py'}:tune", "--strategy", "random", "--quiet")
    assert code == 0
    assert all(trial["metrics"]["quality"] == trial["parameters"]["x"] for trial in found["trials"])


def test_the_script_runs_on_its_own_with_the_defaults(folder: Path) -> None:
    done = subprocess.run([sys.executable, str(folder / "train.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_parameter_without_value_and_default_is_an_error() -> None:
    assert distune.get_parameter("lr", default=0.1) == 0.1
    with pytest.raises(UsageError, match="no trial is running; give a default"):
        distune.get_parameter("lr")


@pytest.mark.parametrize("strategy", [pytest.param("bayesian", marks=pytest.mark.full), "tpe"])
def test_samplers_find_the_good_corner(folder: Path, strategy: str) -> None:
    experiment = replace(load_experiment(folder / "sigopt.yml"), budget=30)
    outcome = tune_script(experiment, StrategySpec(strategy), judged)
    assert len(outcome.trials) == 30
    assert outcome.best is not None
    assert outcome.best.metrics["quality"] > 0.9


@pytest.mark.full
def test_sigopt_tunes_a_script(folder: Path) -> None:
    environment.install()
    (folder / "sigopt.yml").write_text(FILE.replace("parallel_bandwidth: 2\n", ""))
    outcome = tune_script(load_experiment(folder / "sigopt.yml"), StrategySpec("sigopt", {"driver": "lite"}), judged)
    assert outcome.best is not None
    assert any("best assignments are those of trial" in note for note in outcome.notes)


def test_two_metrics_to_optimize_give_a_front(folder: Path) -> None:
    text = FILE.replace("strategy: constraint, threshold: 5", "strategy: optimize")
    (folder / "sigopt.yml").write_text(text)
    outcome = tune_script(load_experiment(folder / "sigopt.yml"), StrategySpec("random"), judged)
    by_id = {trial.id: trial.metrics for trial in outcome.trials}
    front = [by_id[number] for number in outcome.front]
    assert front
    for one in front:
        others = [m for m in by_id.values() if m]
        assert not any(o["quality"] > one["quality"] and o["cost"] < one["cost"] for o in others)


def test_what_is_wrong_is_said_before_anything_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="does not tune parameters; those that do: bayesian"):
        tune_script(load_experiment(folder / "sigopt.yml"), StrategySpec("basic"), judged)
    (folder / "sigopt.yml").write_text(FILE.replace("budget", "budgt"))
    with pytest.raises(ConfigError, match="did you mean 'budget'"):
        load_experiment(folder / "sigopt.yml")
    assert main(["run", "nowhere.py", "--sigopt-file", str(folder / "sigopt.yml")]) == 2
