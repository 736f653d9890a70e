"""Real models: the accuracies and traps that the assets' README states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distune.backends.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeModel
from distune.config.job import Approach, ModelSpec, TuningJob
from distune.space.op_config import FP32, TuningConfig
from distune.space.tuning_space import TuningSpace, build_space

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


@dataclass(frozen=True)
class TransformerTask:
    """fp32, the default config of an approach, and its space."""

    fp32: OnnxRuntimeModel
    quantized: OnnxRuntimeModel
    space: TuningSpace


def transformer(assets: Path, name: str, feeds: list[dict[str, np.ndarray]], approach: Approach) -> TransformerTask:
    backend = OnnxRuntimeBackend(TuningJob(ModelSpec("onnxruntime", str(assets / "models" / f"{name}.onnx"))))
    space = build_space(backend.facts().capability, (), approach, {}, (64,))
    config = space.default()
    if config.needs_calibration:
        backend.set_statistics((), 64, backend.calibrate((), enumerate(feeds)))
    return TransformerTask(backend.load(None), backend.load(config), space)


@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_the_default_of_a_character_gpt_keeps_its_perplexity(assets: Path, approach: Approach) -> None:
    tokens, calibration = (
        np.load(assets / "data" / f"shakespeare_{part}.npz")["tokens"].astype(np.int64) for part in ("eval", "calib")
    )
    feeds = [{"input_ids": calibration[start : start + 8, :-1]} for start in range(0, 64, 8)]
    task = transformer(assets, "chargpt_shakespeare", feeds, approach)

    def loss(model: OnnxRuntimeModel) -> float:
        logits = model.predict({"input_ids": tokens[:64, :-1]})[0].astype(np.float64)
        top = logits.max(-1, keepdims=True)
        normalizer = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
        return float((normalizer - np.take_along_axis(logits, tokens[:64, 1:, None], -1)[..., 0]).mean())

    assert np.exp(loss(task.quantized) - loss(task.fp32)) - 1 < 0.004
    assert task.quantized.ops_executed_int8 == 18
    assert [len(block) for block in task.space.blocks] == [6] * 4


@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_the_default_of_a_sentence_encoder_keeps_its_embeddings(assets: Path, approach: Approach) -> None:
    """Cosine of the fp32 and the int8 embedding of a sentence: 0.6 and less where masks or softmax are quantized."""
    test, calibration = (np.load(assets / "data" / f"stsb_{part}.npz") for part in ("test", "calib"))

    def side(data: Mapping[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
        mask = data["attention_mask_a"][start : start + 8].astype(np.int64)
        length = int(mask.sum(1).max())
        ids = data["input_ids_a"][start : start + 8].astype(np.int64)
        return {"input_ids": ids[:, :length], "attention_mask": mask[:, :length]}

    task = transformer(assets, "minilm_stsb", [side(calibration, start) for start in range(0, 64, 8)], approach)
    cosines = []
    for start in range(0, 128, 8):
        feed = side(test, start)
        cosines.append((task.fp32.predict(feed)[0] * task.quantized.predict(feed)[0]).sum(1))
    assert np.concatenate(cosines).mean() > 0.97
    assert task.quantized.ops_executed_int8 == 37
    assert [len(block) for block in task.space.blocks] == [8] * 6
