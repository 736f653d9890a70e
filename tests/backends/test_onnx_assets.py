"""Real models: the accuracies and traps that the assets' README states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeModel
from distune.config.job import ModelSpec, TuningJob
from distune.space.op_config import FP32, TuningConfig

pytestmark = [pytest.mark.assets, pytest.mark.full]

MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)


@dataclass(frozen=True)
class Cifar:
    """A calibrated CIFAR-10 model and its evaluation set."""

    backend: OnnxRuntimeBackend
    config: TuningConfig
    images: np.ndarray
    labels: np.ndarray

    def accuracy(self, loaded: OnnxRuntimeModel) -> float:
        """Top-1 over the evaluation set."""
        hits = 0
        for start in range(0, len(self.labels), 100):
            logits = loaded.predict({"input": self.images[start : start + 100]})[0]
            hits += int((logits.argmax(1) == self.labels[start : start + 100]).sum())
        return hits / len(self.labels)


def cifar(assets: Path, name: str) -> Cifar:
    def prepared(data: np.ndarray) -> np.ndarray:
        channels_first = data.transpose(0, 3, 1, 2).astype(np.float32)
        return channels_first / 127.5 - 1 if name == "mobilenetv1" else (channels_first / 255 - MEAN) / STD

    calibration = prepared(np.load(assets / "data" / "cifar10_calib.npz")["images"][:200])
    evaluation = np.load(assets / "data" / "cifar10_eval.npz")
    path = str(assets / "models" / f"{name}_cifar10.onnx")
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", path)))
    feeds = [{"input": calibration[start : start + 20]} for start in range(0, 200, 20)]
    backend.set_statistics((), 200, backend.calibrate((), enumerate(feeds)))
    ops = backend.facts().capability.ops
    config = TuningConfig(tuple((op.name, op.options[0]) for op in ops), sampling_size=200)
    return Cifar(backend, config, prepared(evaluation["images"]), evaluation["labels"])


@pytest.mark.parametrize(
    ("name", "fp32", "relative"),
    [("resnet20", 0.8158, 0.0005), ("mbv3", 0.8214, -0.0041), ("mobilenetv1", 0.8012, -0.026)],
)
def test_the_default_config_has_the_accuracy_that_is_known(
    assets: Path, name: str, fp32: float, relative: float
) -> None:
    task = cifar(assets, name)
    loaded = task.backend.load(task.config)
    assert task.accuracy(loaded) / fp32 - 1 == pytest.approx(relative, abs=0.0025)
    assert loaded.ops_executed_int8 == sum(op.has_weight for op in task.backend.facts().capability.ops)
    assert loaded.size_bytes < 0.45 * task.backend.facts().size_bytes


def test_a_depthwise_convolution_that_falls_back_keeps_its_accuracy(assets: Path) -> None:
    """0.40 where ONNX Runtime quantizes its weight again, 0.796 where it really runs in fp32."""
    task = cifar(assets, "mobilenetv1")
    ops = task.backend.facts().capability.ops
    config = task.config.with_ops({op.name: FP32 for op in ops if op.group == "/blocks/blocks.0/dw/Conv"})
    loaded = task.backend.load(config)
    assert task.accuracy(loaded) == pytest.approx(0.796, abs=0.004)
    assert loaded.ops_executed_int8 == 26
    assert dict(loaded.reasons) == {}
