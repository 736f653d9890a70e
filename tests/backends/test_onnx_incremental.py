"""A variant written from what earlier ones left is, bit for bit, what ONNX Runtime's own quantizer writes in full."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import onnx
import pytest
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from distune.backends.onnxruntime import qdq, shared
from distune.backends.onnxruntime.quantizer import CachingQdqQuantizer, WeightCache
from distune.space.op_config import TuningConfig
from tests.backends.onnx_models import (
    SAMPLES,
    OnnxRuntimeBackend,
    attention_model,
    backend_of,
    convolution_model,
    images,
    sentences,
    sequences,
    transformer_model,
)

CONFIGS = 12


class PlainQuantizer(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's quantizer with what distune changes of its output, and nothing that is remembered or indexed."""

    def __init__(
        self,
        model: onnx.ModelProto,
        nodes: list[str],
        op_types: list[str],
        ranges: dict[str, TensorData],
        overrides: dict[str, list[dict[str, Any]]],
        keep_activation_before: Collection[str],
        cache: WeightCache,
        extra_options: Mapping[str, Any] | None = None,
        float_outputs: Collection[str] = (),
    ) -> None:
        super().__init__(
            model,
            per_channel=False,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=op_types,
            extra_options={"TensorQuantOverrides": overrides, **(extra_options or {})},
        )
        self._keep_activation_before = keep_activation_before
        self._float_outputs = float_outputs
        self.warnings: list[str] = []

    def write(self) -> onnx.ModelProto:
        self.quantize_model()
        self.model.topological_sort()
        proto: onnx.ModelProto = self.model.model
        return proto

    adjust_tensor_ranges = CachingQdqQuantizer.adjust_tensor_ranges

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self._float_outputs:
            super().quantize_activation_tensor(tensor_name)

    def try_replacing_upstream_output(self, upstream_output_name: str, output_name: str) -> bool:
        if output_name in self._keep_activation_before:
            return False
        return bool(super().try_replacing_upstream_output(upstream_output_name, output_name))


def random_config(backend: OnnxRuntimeBackend, seed: int) -> TuningConfig:
    """Any option for any op, with some parts of the graph quantized densely."""
    dice = random.Random(seed)
    ops = []
    for op in backend.facts().capability.ops:
        options = [option for option in op.options if option.mode in ("static", "fp32")]
        quantized = [option for option in options if option.is_quantized]
        ops.append((op.name, dice.choice(quantized) if quantized and dice.random() < 0.7 else dice.choice(options)))
    return TuningConfig(tuple(ops), sampling_size=SAMPLES)


MODELS = {
    "convolutions": (convolution_model, images),
    "attention": (attention_model, sentences),
    "transformer": (transformer_model, sequences),
}


@pytest.mark.parametrize("name", MODELS)
def test_incremental_quantization_is_bit_equal_to_a_full_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = MODELS[name]
    backend = backend_of(make(), data())
    configs = [random_config(backend, seed) for seed in range(CONFIGS)]
    incremental = [backend.export(config).files for config in (*configs, *reversed(configs))]
    monkeypatch.setattr(qdq, "CachingQdqQuantizer", PlainQuantizer)
    full = [backend.export(config).files for config in configs]
    assert len({files["model.onnx"] for files in full}) > CONFIGS // 2
    assert incremental == [*full, *reversed(full)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("worth", [64, 2000, 8000, 30_000])
def test_weights_in_files_are_those_of_their_variant(name: str, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight quantized in two ways has one name, and may come to its file together with the other."""
    make, data = MODELS[name]
    configs = [random_config(whole := backend_of(make(), data()), seed) for seed in range(CONFIGS)]
    expected = [whole.export(config).files for config in configs]
    monkeypatch.setattr(shared, "LIGHT_BYTES", 16)
    monkeypatch.setattr(shared, "WORTH_BYTES", worth)
    light = backend_of(make(), data())
    found = [light.export(config).files for config in configs]
    weights = [
        [
            {
                t.name: shared.values_of(t).tobytes()
                for t in onnx.load_from_string(files["model.onnx"]).graph.initializer
            }
            for files in exported
        ]
        for exported in (expected, found)
    ]
    assert weights[0] == weights[1]
