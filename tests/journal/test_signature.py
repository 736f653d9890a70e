"""What must fit for a resume, and how a misfit is told."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distune.config.job import (
    CalibrationSpec,
    ComponentSpec,
    Constraint,
    CriterionSpec,
    DataloaderSpec,
    EvaluationSpec,
    ExitPolicy,
    LatencySpec,
    MetricSpec,
    ModelSpec,
    StrategySpec,
    TuningJob,
)
from distune.journal import Journal
from distune.journal.signature import differences, signature

JOB = TuningJob(
    model=ModelSpec("onnxruntime", "/data/model.onnx"),
    calibration=CalibrationSpec(DataloaderSpec(ComponentSpec("Npz", {"path": "/data/train.npz"}), batch_size=8)),
    constraints=(Constraint("op", "conv1", {"dtype": ("int8", "fp32")}, where="a.yaml:3:1"),),
    evaluation=EvaluationSpec(
        DataloaderSpec(ComponentSpec("Npz", {"path": "/data/test.npz"})), (MetricSpec(ComponentSpec("topk", {"k": 1})),)
    ),
)


def told(**changes: Any) -> list[str]:
    return differences(signature(JOB, "d1"), signature(replace(JOB, **changes), "d1"))


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_policy": ExitPolicy(timeout=60, max_trials=7)},
        {"isolation": "none"},
        {"workspace": "/elsewhere"},
        {"source": "b.yaml"},
        {"model": ModelSpec("onnxruntime", "/moved/model.onnx")},
        {"constraints": (replace(JOB.constraints[0], where="b.yaml:9:1"),)},
    ],
)
def test_what_does_not_decide_results_may_change(changes: dict[str, Any]) -> None:
    assert told(**changes) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"criterion": CriterionSpec(tolerance=0.02)}, "criterion.tolerance: was 0.01, now 0.02"),
        ({"seed": 2}, "seed: was 1978, now 2"),
        ({"approach": "dynamic"}, "approach: was 'static', now 'dynamic'"),
        ({"strategy": StrategySpec("mse")}, "strategy.name: was 'basic', now 'mse'"),
        ({"recipes": {"smooth_quant": True}}, "recipes.smooth_quant: was not set, now True"),
        ({"quant_level": "auto"}, "quant_level: was 1, now 'auto'"),
        ({"constraints": ()}, "constraints: was "),
        (
            {"evaluation": replace(JOB.evaluation, metrics=(MetricSpec(ComponentSpec("topk", {"k": 5})),))},
            "evaluation.metrics[0].metric.args.k: was 1, now 5",
        ),
        (
            {"evaluation": replace(JOB.evaluation, performance=LatencySpec(cores_per_instance=4))},
            "evaluation.performance.cores_per_instance: was 1, now 4",
        ),
        (
            {"calibration": replace(JOB.calibration, sampling_sizes=(100, 200))},
            "calibration.sampling_sizes: was [100], now [100, 200]",
        ),
        ({"exit_policy": ExitPolicy(performance_only=True)}, "performance_only: was False, now True"),
    ],
)
def test_what_decides_results_is_told_with_its_key_path(changes: dict[str, Any], words: str) -> None:
    found = told(**changes)
    assert len(found) == 1
    assert found[0].startswith(words)


def test_other_model_or_data_is_told_in_words() -> None:
    assert differences(signature(JOB, "aaa"), signature(JOB, "bbb")) == [
        "model.digest: was aaa, now bbb (the model or the data are not the same)"
    ]


def test_a_signature_survives_the_journal(tmp_path: Path) -> None:
    job = replace(JOB, criterion=CriterionSpec(tolerance=float("nan")))
    with Journal.open(tmp_path / "j", {"signature": signature(job, "d1")}):
        pass
    with Journal.open(tmp_path / "j", {}) as journal:
        assert differences(journal.header["signature"], signature(job, "d1")) == []


def evaluate(model: object) -> float:
    return 1.0


class LiveLoader:
    batch_size = 2

    def __iter__(self) -> object:
        return iter([])


@pytest.mark.parametrize("function", [evaluate, functools.partial(evaluate, model=None), lambda model: 0.5])
def test_live_objects_are_named_with_a_hash_of_their_source(function: Callable[..., Any]) -> None:
    job = replace(JOB, evaluation=EvaluationSpec(LiveLoader(), (MetricSpec(LiveLoader()),), eval_func=function))  # type: ignore[arg-type]
    entry = signature(job, "")["evaluation"]
    json.dumps(entry)
    assert entry["eval_func"]["name"].startswith(__name__)
    assert len(entry["eval_func"]["source"]) == 16
    assert entry["dataloader"]["name"].endswith("LiveLoader")
    assert entry["metrics"][0]["metric"]["name"].endswith("LiveLoader")


def test_a_list_of_arrays_is_a_dataloader_too() -> None:
    job = replace(JOB, calibration=CalibrationSpec([(np.zeros((2, 3)), 1)]))
    assert signature(job, "")["calibration"]["dataloader"]["name"] == "builtins.list"


def test_an_edited_user_function_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "score.py"
    job = replace(JOB, evaluation=EvaluationSpec(eval_func=f"{file}:score"))
    file.write_text("def score(model): return 1.0\n")
    old = signature(job, "")
    file.write_text("def score(model): return 2.0\n")
    assert differences(old, signature(job, "")) == ["evaluation.eval_func: its source code has changed"]
