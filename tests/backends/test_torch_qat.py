"""Quantization-aware training: what is trained is what is converted, twice the same, and resumed at the epoch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchao")

import torch

from distune.backends.pytorch.backend import PyTorchBackend
from distune.backends.pytorch.qat import trainer as trainer_module
from distune.backends.pytorch.qat.backend import TrainingBackend
from distune.config.job import ComponentSpec
from distune.errors import TrialError, UsageError
from distune.space.op_config import FP32, TuningConfig
from distune.space.tuning_space import build_space
from tests.backends.torch_training import accuracy, data, job


@cache
def int8() -> TuningConfig:
    """Every op quantized, ranges learned."""
    return build_space(TrainingBackend(job()).facts().capability, (), "qat", {}, (0,)).default()


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_converted_graph_computes_what_was_trained_and_the_users_module_stays() -> None:
    backend = TrainingBackend(job())
    images = torch.from_numpy(data()[0])
    before = backend.float_state()
    module = backend.trainable(int8())
    optimizer = torch.optim.SGD(module.module.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        module.module(images[:64]).square().mean().backward()
        optimizer.step()
    module.module.eval()
    graph = backend.quantized_by_training(int8(), module.learned())
    with torch.no_grad():
        assert torch.equal(module.module(images), graph(images))
    assert same(before, backend.float_state())
    assert not same(before, dict(module.learned().state))


def test_batch_norm_keeps_its_own_eps_and_momentum() -> None:
    module = TrainingBackend(job()).trainable(int8()).module
    norms = [node for node in module.graph.nodes if node.target == torch.ops.aten.batch_norm.default]
    assert sorted(tuple(node.args[5:8]) for node in norms) == [(True, 0.1, 1e-5), (True, 0.1, 1e-3), (True, 0.3, 1e-3)]
    module.eval()
    assert not any(node.args[5] for node in norms)


def test_training_recovers_what_post_training_loses() -> None:
    backend = TrainingBackend(job(end_epoch=4, optimizer=ComponentSpec("Adam", {"lr": 0.005})))
    after = PyTorchBackend(replace(job(), approach="static"))
    after.set_statistics((), 64, after.calibrate((), [(0, {"input": data()[0]})]))
    fp32 = accuracy(backend.load(None))
    assert accuracy(after.load(replace(int8(), sampling_size=64))) < 0.99 * fp32
    assert accuracy(backend.load(int8())) >= 0.99 * fp32


def test_an_interrupted_training_goes_on_at_the_epoch_and_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name / "cache").mkdir(parents=True)
    whole = TrainingBackend(job(tmp_path / "whole", end_epoch=3))._training().trained(int8())
    epoch = trainer_module.Trainer._epoch
    trained: list[int] = []

    def stops_in_the_third(self: Any, module: Any, optimizer: Any, number: int) -> float:
        trained.append(number)
        if trained == [0, 1, 2]:
            raise KeyboardInterrupt
        return epoch(self, module, optimizer, number)

    monkeypatch.setattr(trainer_module.Trainer, "_epoch", stops_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        TrainingBackend(job(tmp_path / "parts", end_epoch=3))._training().trained(int8())
    resumed = TrainingBackend(job(tmp_path / "parts", end_epoch=3))._training().trained(int8())
    assert trained == [0, 1, 2, 2]
    assert same(whole.state, resumed.state)
    assert (whole.ranges, whole.losses) == (resumed.ranges, resumed.losses)
    again = TrainingBackend(job(tmp_path / "parts", end_epoch=3))._training().trained(int8())
    assert trained == [0, 1, 2, 2]  # kept: nothing trains twice
    assert same(whole.state, again.state)
    (file,) = (tmp_path / "parts" / "cache").iterdir()
    assert torch.load(file, weights_only=True)["epoch"] == 3


def test_another_seed_or_config_trains_otherwise() -> None:
    base = TrainingBackend(job())._training().trained(int8())
    assert same(base.state, TrainingBackend(job())._training().trained(int8()).state)
    other = TrainingBackend(replace(job(), seed=1))._training().trained(int8())
    assert not same(base.state, other.state)
    partly = int8().with_ops({"c1": FP32})
    assert not same(base.state, TrainingBackend(job())._training().trained(partly).state)


def test_a_saved_config_is_applied_to_the_fp32_module_without_training(tmp_path: Path) -> None:
    backend = TrainingBackend(job(end_epoch=1))
    exported = backend.export(int8())
    applied = TrainingBackend(replace(job(), train=None)).apply(exported.deploy, int8())
    for found in (exported, applied):
        (tmp_path / "model.pt2").write_bytes(found.files["model.pt2"])
        module = torch.export.load(tmp_path / "model.pt2").module()
        images = torch.from_numpy(data(50)[0])
        with torch.no_grad():
            assert torch.equal(module(images), backend.load(int8()).native(images))


def test_a_training_function_of_the_users() -> None:
    def train(module: torch.nn.Module) -> None:
        images, labels = (torch.from_numpy(array) for array in data())
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()

    trained = TrainingBackend(job(dataloader=None, train_func=train)).load(int8())
    assert accuracy(trained) > 0.3


@pytest.mark.parametrize(
    ("train", "error", "words"),
    [
        ({"optimizer": ComponentSpec("SGD", {"lr": 1e9})}, TrialError, "lower the learning rate"),
        ({"optimizer": ComponentSpec("Adam", {"lr": -1.0})}, UsageError, "quantization.train.optimizer: Adam"),
        ({"criterion": ComponentSpec("MSELoss")}, UsageError, "cannot compare the model's outputs"),
        ({"dataloader": None}, UsageError, "quantization.train.dataloader"),
    ],
)
def test_what_is_wrong_is_said(train: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TrainingBackend(job(**train)).load(int8())
