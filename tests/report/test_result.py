"""``result.json`` says what was measured, in the form that its schema describes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, get_args

import jsonschema
import pytest

from distune.config.job import ObjectiveSpec
from distune.engine.outcome import OutcomeName, RunOutcome
from distune.errors import UsageError
from distune.report.build import pareto_front, pareto_of_objectives, result_of
from distune.report.result import RunResult
from distune.report.result_schema import schema
from tests.report.fabricated import JOB, LATENCY, TRIALS, WORKERS, outcome, trial

ENDINGS: tuple[OutcomeName, ...] = get_args(OutcomeName)


@pytest.mark.parametrize("name", ENDINGS)
def test_the_file_of_every_ending_fits_the_schema_and_comes_back(name: OutcomeName) -> None:
    result = result_of(outcome(name))
    text = result.to_json()
    jsonschema.Draft202012Validator(schema()).validate(json.loads(text))
    assert RunResult.from_json(text) == result
    assert result.outcome == name


def test_a_run_that_failed_before_anything_was_known_has_a_result_too() -> None:
    result = result_of(RunOutcome("failed", JOB, 1, WORKERS[:1], {0: "gone"}, failure="no worker is left"))
    plain = json.loads(result.to_json())
    jsonschema.Draft202012Validator(schema()).validate(plain)
    assert plain["best"] is None
    assert plain["baseline"] is None
    assert plain["criterion"]["target"] is None
    assert plain["timing"]["baseline_s"] is None
    assert plain["lost_ranks"] == [0]


def test_the_schema_is_valid_and_describes_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())

    def undescribed(node: dict[str, Any], path: str) -> list[str]:
        found = []
        for name, child in node.get("properties", {}).items():
            found += [] if child.get("description") else [f"{path}.{name}"]
            for inner in (child, child.get("items", {}), *child.get("anyOf", [])):
                found += undescribed(inner, f"{path}.{name}") if "properties" in inner else []
        return found

    assert undescribed(schema(), "") == []


def test_what_was_not_measured_is_null() -> None:
    numbers = replace(
        TRIALS[0], accuracy=math.nan, accuracy_low=-math.inf, accuracy_high=math.inf, metrics={"f1": math.nan}
    )
    plain = json.loads(result_of(replace(outcome(), trials=(numbers, TRIALS[3]))).to_json())
    for entry in plain["trials"]:
        assert entry["accuracy"] is None
        assert entry["accuracy_low"] is None
        assert entry["accuracy_high"] is None
        assert entry["latency"] is None
    assert plain["trials"][0]["metrics"] == {"f1": None}
    assert plain["trials"][1]["verdict"] == "failed"
    assert "signal 11" in plain["trials"][1]["reason"]


def test_a_best_effort_is_named_so() -> None:
    assert result_of(outcome("met")).best.best_effort is False  # type: ignore[union-attr]
    assert result_of(outcome("not_met")).best.best_effort is True  # type: ignore[union-attr]
    assert result_of(outcome("not_judged")).best.best_effort is False  # type: ignore[union-attr]


def test_ops_of_the_best_model_are_counted_and_fallback_has_reasons() -> None:
    best = result_of(outcome()).best
    assert best is not None
    assert (best.ops_total, best.ops_quantized, best.ops_executed_int8) == (4, 2, 2)
    assert best.fallback_ops == ("conv1", "conv2_dw")
    assert best.fallback_reasons["conv1"] == "alone in fp32 it improves accuracy by 0.6729"


def test_the_front_holds_what_nothing_else_beats() -> None:
    def measured(number: int, accuracy: float, ratio: float, size: int) -> Any:
        return replace(trial(number, "s", accuracy), latency=replace(LATENCY, ratio=ratio), size_bytes=size)

    trials = [
        measured(1, 0.80, 0.5, 10),
        measured(2, 0.79, 0.5, 10),
        measured(3, 0.82, 0.9, 20),
        measured(4, 0.70, 0.9, 5),
        trial(5, "s", 0.99),
    ]
    assert [point.trial for point in pareto_front(trials, True)] == [1, 3, 4]
    assert [point.trial for point in pareto_front(trials, False)] == [2, 4]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 9}, r"schema version 1 but of 9; read it with distune"),
        ({"outcome": "great"}, "outcome is 'great', expected one of 'met'"),
        ({"seed": "1"}, "seed is '1', expected int"),
        ({"extra": 1}, "unknown keys: extra"),
        ({"hosts": [{"name": "a"}]}, r"hosts\[0\] lacks cpu, isa"),
    ],
)
def test_a_file_of_another_form_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    plain = {**result_of(outcome()).to_plain(), **change}
    with pytest.raises(UsageError, match=words):
        RunResult.from_json(json.dumps(plain))


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not a result\.json"):
        RunResult.from_json("<html>")


def test_the_front_of_metrics_to_optimize_is_of_trials_that_meet() -> None:
    objectives = (ObjectiveSpec("metric", metric="f1", higher_is_better=True), ObjectiveSpec("metric", metric="cost"))

    def scored(number: int, f1: float, cost: float) -> Any:
        return replace(trial(number, "s", 0.95), metrics={"f1": f1, "cost": cost})

    trials = [scored(1, 0.8, 5.0), scored(2, 0.9, 6.0), scored(3, 0.7, 6.0), scored(4, 0.8, 5.0)]
    failing = replace(scored(5, 1.0, 0.0), verdict="not_met")
    points = pareto_of_objectives([*trials, failing], objectives)
    assert [point.trial for point in points] == [1, 2, 4]
    assert points[0].metrics == {"f1": 0.8, "cost": 5.0}
