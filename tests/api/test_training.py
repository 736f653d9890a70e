"""``distune.training``: a manager, its callbacks, a training of one's own and a tuning with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from distune import QuantizationAwareTrainingConfig, training
from distune.config import PostTrainingQuantConfig
from distune.errors import UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from tests.backends.torch_training import accuracy, data, network  # noqa: E402


def conf() -> QuantizationAwareTrainingConfig:
    return QuantizationAwareTrainingConfig(quant_level=1)


def test_what_is_no_training_is_refused() -> None:
    with pytest.raises(UsageError, match="PostTrainingQuantConfig"):
        training.prepare_compression(network(), PostTrainingQuantConfig())
    with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module"):
        training.prepare_compression("model.onnx", conf())
    with pytest.raises(UsageError, match="example_inputs"):
        _ = training.prepare_compression(network(), conf()).model
    with pytest.raises(UsageError, match="cannot be called"):
        training.fit(training.prepare_compression(network(), [conf()]), train_func=3)  # type: ignore[arg-type]


def test_a_manager_travels_without_its_module() -> None:
    manager = training.prepare_compression(network(), conf(), data()[0][:2])
    other = cloudpickle.loads(cloudpickle.dumps(lambda: manager.callbacks))()
    assert other._manager.original is None
    assert len(cloudpickle.dumps(manager)) < 10_000


def train(manager: Any, module: Any, epochs: int = 2) -> None:
    images, labels = (torch.from_numpy(array) for array in data())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.002)
    manager.callbacks.on_train_begin()
    for epoch in range(epochs):
        manager.callbacks.on_epoch_begin(epoch)
        for start in range(0, len(labels), 64):
            manager.callbacks.on_step_begin(start)
            output = module(images[start : start + 64])
            loss = torch.nn.functional.cross_entropy(output, labels[start : start + 64])
            loss = manager.callbacks.on_after_compute_loss(images, output, loss)
            optimizer.zero_grad()
            loss.backward()
            manager.callbacks.on_before_optimizer_step()
            optimizer.step()
            manager.callbacks.on_step_end()
        manager.callbacks.on_epoch_end()
    manager.callbacks.on_train_end()


def test_a_training_of_ones_own_is_saved(tmp_path: Path) -> None:
    manager = training.prepare_compression(network(), conf(), data()[0][:2])
    with pytest.raises(UsageError, match="on_train_end"):
        manager.save(tmp_path)
    train(manager, manager.model)
    files = {path.name for path in manager.save(tmp_path / "saved")}
    assert {"model.pt2", "trained.pt", "tuning_config.yaml"} <= files
    images = torch.from_numpy(data(40)[0])
    module = torch.export.load(tmp_path / "saved" / "model.pt2").module()
    with torch.no_grad():
        assert torch.equal(module(images), manager.model(images))
    network().load_state_dict(torch.load(tmp_path / "saved" / "trained.pt", weights_only=True), strict=False)


@pytest.mark.full
def test_fit_trains_every_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager = training.prepare_compression(network(), conf(), data()[0][:2])
    images, labels = data(400, seed=9)

    def train_func(module: Any) -> None:
        train(manager, module, epochs=4)

    found = training.fit(
        manager, train_func, eval_dataloader=[(images, labels)], eval_metric={"topk": 1}, isolation="none", quiet=True
    )
    assert found
    assert found.accuracy is not None
    assert found.accuracy >= 0.99 * accuracy(_Eager())


class _Eager:
    def predict(self, feed: Any) -> Any:
        with torch.no_grad():
            return [network()(torch.from_numpy(feed["input"])).numpy()]
