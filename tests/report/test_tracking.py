"""Trackers: what TensorBoard and MLflow themselves read back, and trackers of one's own that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distune.backends.diagnosis import TensorComparison
from distune.config.job import ComponentSpec
from distune.engine import events
from distune.errors import UsageError
from distune.report.build import result_of
from distune.report.tracking.base import TrackerListener, open_trackers
from tests.report.fabricated import outcome, story

CALLS: list[str] = []


class Own:
    """A tracker that does not inherit from anything."""

    def __init__(self, project: str = "") -> None:
        CALLS.append(f"project {project}")

    def on_trial(self, trial: Any) -> None:
        CALLS.append(f"trial {trial.id}")


class Failing:
    def on_baseline(self, accuracy: float, target: float) -> None:
        raise ValueError("no connection")

    def on_trial(self, trial: Any) -> None:
        CALLS.append("told although it failed")


def follow(tmp_path: Path, *specs: ComponentSpec) -> list[str]:
    """A whole run told to trackers; returns what they were warned of."""
    CALLS.clear()
    warnings: list[str] = []
    listener = TrackerListener(open_trackers(specs), tmp_path, warnings.append)
    for event in (*story(), *diagnosed()):
        listener.on(event)
    listener.end(result_of(outcome()))
    listener.close()
    return warnings


def diagnosed() -> Iterator[events.RunEvent]:
    comparison = TensorComparison()
    fp32 = np.linspace(-1, 1, 100, dtype=np.float32)
    for step in (comparison.see_range, comparison.count):
        step(fp32, np.round(fp32 * 8) / 8)
    yield events.Diagnosed(outcome().trials[0], {"conv1": {"weight": comparison.result()}})


def test_tensorboard_reads_the_scalars_and_the_distributions(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert follow(tmp_path, ComponentSpec("tensorboard")) == []
    read = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    told = [event.trial for event in story() if isinstance(event, events.TrialDecided) and not event.again]
    points = {point.step: point.value for point in read.Scalars("trial/accuracy")}
    assert points == {trial.id: pytest.approx(trial.accuracy) for trial in told if trial.accuracy is not None}
    assert "trial/latency_ratio" in read.Tags()["scalars"]
    for side in ("fp32", "quantized"):
        (histogram,) = read.Histograms(f"conv1/weight/{side}")
        assert histogram.histogram_value.num == 100
        assert histogram.histogram_value.min == pytest.approx(-1)


def test_a_resumed_run_replaces_the_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    for _ in range(2):
        follow(tmp_path, ComponentSpec("tensorboard"))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.full
def test_mlflow_reads_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    (tmp_path / "result.json").write_text("{}")
    assert follow(tmp_path, ComponentSpec("mlflow", {"tracking_uri": uri, "experiment": "mine"})) == []
    client = tracking.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "met")
    assert run.data.params["strategy"] == "basic"
    assert len(client.get_metric_history(run.info.run_id, "accuracy")) > 1
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["result.json"]


def test_a_tracker_of_ones_own_needs_only_the_methods_it_wants(tmp_path: Path) -> None:
    assert follow(tmp_path, ComponentSpec(f"{__name__}:Own", {"project": "x"})) == []
    assert CALLS[0] == "project x"
    assert "trial 1" in CALLS


def test_a_tracker_that_fails_does_not_take_the_run_along(tmp_path: Path) -> None:
    warnings = follow(tmp_path, ComponentSpec(f"{__name__}:Failing"), ComponentSpec(f"{__name__}:Own"))
    assert len(warnings) == 1
    assert "ValueError: no connection" in warnings[0]
    assert "told although it failed" not in CALLS
    assert "trial 1" in CALLS


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ComponentSpec(f"{__name__}:CALLS"), "is not a class with a method of Tracker"),
        (ComponentSpec(f"{__name__}:Own", {"projekt": 1}), "refuses its arguments"),
        (ComponentSpec("no.such.module:Tracker"), "there is no module"),
    ],
)
def test_what_is_no_tracker_is_refused_before_the_run(spec: ComponentSpec, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_trackers([spec])
