"""The runner with the real backend, on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distune.backends.statistics import merge
from distune.config.job import (
    CalibrationSpec,
    ComponentSpec,
    DataloaderSpec,
    EvaluationSpec,
    LatencySpec,
    MetricSpec,
    ModelSpec,
    TuningJob,
)
from distune.space.tuning_space import build_space
from distune.trial import messages as m
from distune.trial.runner import Runner

pytestmark = pytest.mark.assets


def _job(assets: Path) -> TuningJob:
    def loader(name: str, batch_size: int) -> DataloaderSpec:
        arrays = {"path": str(assets / "data" / f"{name}.npz"), "inputs": "images", "label": "labels"}
        transforms = (ComponentSpec("Rescale", {"divisor": 16}), ComponentSpec("Reshape", {"shape": [1, 8, 8]}))
        return DataloaderSpec(ComponentSpec("Npz", arrays), transforms, batch_size)

    return TuningJob(
        ModelSpec("onnxruntime", str(assets / "models" / "digits_cnn.onnx")),
        calibration=CalibrationSpec(loader("digits_calib", 8), (64,)),
        evaluation=EvaluationSpec(
            loader("digits_eval", 50), (MetricSpec(ComponentSpec("topk")),), performance=LatencySpec(iteration=500)
        ),
    )


def test_from_inspection_to_export_on_a_real_model(assets: Path) -> None:
    import onnxruntime as ort

    runner = Runner(_job(assets), "here", 0)

    def ask(body: m.RequestBody) -> Any:
        answer = runner.answer(m.Request(1, body)).body
        assert not isinstance(answer, m.Failure), f"{answer.message}\n{answer.detail}"
        return answer

    inspection = ask(m.Inspect())
    baseline = ask(m.Baseline())
    assert baseline.value == pytest.approx(0.9755556)
    assert inspection.fp32_in_shards
    together = ask(m.Baseline(tuple(ask(m.Survey(shard, 3)) for shard in range(3))))
    assert (together.value, together.order, together.samples) == (baseline.value, baseline.order, 450)
    shards = [ask(m.Calibrate(64, shard, 3)) for shard in range(3)]
    assert sum(shard.samples for shard in shards) == 64
    runner.receive(m.LoadStatistics((), 64, merge([shard.blob for shard in shards])))
    config = build_space(inspection.capability, (), "static", {}, (64,)).default()
    judged = ask(m.Judge(config, target=0.95))
    assert judged.verdict is True
    assert judged.samples == 450
    assert ask(m.MeasureLatency(config)).blocks > 0
    assert ask(m.MeasureFootprint(config)).candidate_bytes > 10 << 20
    exported = ask(m.Export(config))
    assert judged.size_bytes == pytest.approx(len(exported.files["model.onnx"]), rel=0.02)

    # What was judged is what is exported.
    session = ort.InferenceSession(exported.files["model.onnx"], providers=["CPUExecutionProvider"])
    with np.load(assets / "data" / "digits_eval.npz") as data:
        images, labels = (data["images"] / np.float32(16)).astype(np.float32)[:, None], data["labels"]
    predicted = np.asarray(session.run(None, {"input": images})[0]).argmax(axis=1)
    assert np.mean(predicted == labels) == pytest.approx(judged.value)
    runner.close()
