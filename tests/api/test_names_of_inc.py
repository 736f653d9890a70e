"""Scripts for INC 2.x find the names that they import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import distune
from distune import Metric, PostTrainingQuantConfig, quantization, set_workspace
from distune.data import DataLoader
from distune.errors import DataError, UsageError
from tests.api.small import model, samples


class Samples:
    def __len__(self) -> int:
        return 105

    def __getitem__(self, index: int) -> Any:
        images, labels = samples()
        return images[index], labels[index]


def test_a_script_with_the_names_of_inc() -> None:
    set_workspace("ws")
    loader = DataLoader("onnxrt_qlinearops", Samples(), batch_size=10)
    conf = PostTrainingQuantConfig(quant_level=1)
    conf.accuracy_criterion.tolerable_loss = 0.1
    found = quantization.fit(
        model(), conf, loader, eval_dataloader=loader, eval_metric=Metric(name="topk", k=1), quiet=True
    )
    assert found
    assert found.result.baseline.metrics == {"topk": 1.0}


def test_batches_of_the_dataloader() -> None:
    loader = DataLoader("pytorch", Samples(), batch_size=10)
    batches = list(loader)
    assert len(batches) == len(loader) == 11
    assert [len(images) for images, _ in batches[-2:]] == [10, 5]
    assert np.array_equal(batches[0][0], samples()[0][:10])
    assert len(DataLoader("pytorch", Samples(), batch_size=10, last_batch="discard")) == 10
    with pytest.raises(DataError, match="same batches"):
        DataLoader("pytorch", Samples(), shuffle=True)
    with pytest.raises(DataError, match="no __getitem__"):
        DataLoader("pytorch", iter([]))


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match="Metric: give the name"):
        Metric()
    with pytest.raises(AttributeError, match="has no attribute 'Pruning'"):
        _ = distune.Pruning  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["distune", "distune.config", "distune.quantization", "distune.strategy"])
def test_importing_brings_no_framework(module: str) -> None:
    heavy = {"onnx", "onnxruntime", "torch", "mpi4py", "optuna"}
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
