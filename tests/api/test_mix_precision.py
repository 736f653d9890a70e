"""``mix_precision.fit``: fp16 for ONNX models, judged by the criterion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from distune import mix_precision, training
from distune.config import AccuracyCriterion, MixedPrecisionConfig
from distune.errors import SpaceError, UsageError
from tests.api.small import Batches, model, score


def half_weights(proto: Any) -> set[str]:
    return {tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT16}


def test_a_model_in_fp16_is_judged_and_saved(tmp_path: Path) -> None:
    found = mix_precision.fit(model(), MixedPrecisionConfig(precisions="fp16"), eval_func=score)
    assert found
    assert found.outcome == "met"
    assert (found.baseline_accuracy, found.accuracy) == (1.0, pytest.approx(1.0, abs=0.01))
    assert half_weights(found.model) == {"w0", "w1", "w2"}
    assert found.size_bytes < 0.7 * found.baseline_size_bytes
    assert onnx.load(found.save(tmp_path / "half.onnx")) == found.model
    assert not half_weights(model())


def test_the_fp32_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    found = mix_precision.fit(str(path), MixedPrecisionConfig(precisions="fp16"))
    with pytest.raises(UsageError, match=r"model\.onnx would be written over.*another name"):
        found.save(path)
    assert onnx.load(path) == model()
    assert half_weights(onnx.load(found.save(tmp_path / "half.onnx")))


def test_metrics_latency_and_what_stays_in_fp32() -> None:
    keep = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
    conf = MixedPrecisionConfig(precision="fp16", op_name_dict={"fc1": keep})
    found = mix_precision.fit(model(), conf, eval_dataloader=Batches(), eval_metric="Accuracy")
    assert found
    assert "w1" not in half_weights(found.model)
    assert found.latency is not None
    assert found.latency.ci_low <= found.latency.ratio <= found.latency.ci_high


def test_what_does_not_meet_is_false() -> None:
    conf = MixedPrecisionConfig(
        precisions="fp16",
        accuracy_criterion=AccuracyCriterion(higher_is_better=False, criterion="absolute", tolerable_loss=0),
    )
    metric = {"MSE": {"compare_label": False}}
    found = mix_precision.fit(model(), conf, eval_dataloader=Batches(), eval_metric=metric)
    assert not found
    assert found.model is None
    assert found.best_effort is not None
    with pytest.raises(UsageError, match="does not meet"):
        found.save("x.onnx")


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"bf16 is not for ONNX models.*precisions='fp16'"):
        mix_precision.fit(model(), MixedPrecisionConfig(), eval_func=score)
    rule = {"fc9": {"weight": {"dtype": ["fp32"]}}}
    with pytest.raises(SpaceError, match="op_name_dict: 'fc9' matches nothing"):
        mix_precision.fit(model(), MixedPrecisionConfig(precisions="fp16", op_name_dict=rule))
    with pytest.raises(UsageError, match="give one QuantizationAwareTrainingConfig"):
        training.prepare_compression(None, None)
