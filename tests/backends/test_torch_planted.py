"""A module with one layer that 8 bits ruin: every probe ranks that layer first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from distune.backends.base import LabelledBatch  # noqa: E402
from distune.backends.pytorch.backend import PyTorchBackend  # noqa: E402
from distune.config.job import CalibrationSpec, ModelSpec, StrategySpec, TuningJob  # noqa: E402
from distune.errors import TrialError, UsageError  # noqa: E402
from distune.space.op_config import TuningConfig  # noqa: E402
from distune.strategies.fallback import score_order  # noqa: E402

PLANTED = "third"
LAYERS = ("first", "second", "third", "fourth")


class Net(nn.Module):
    """One weight of each row of ``third`` is huge and meets an input that is always 0: fp32 does not mind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 32)
        self.third, self.fourth = nn.Linear(32, 32), nn.Linear(32, 5)
        with torch.no_grad():
            self.second.weight[0], self.second.bias[0] = 0.0, -1.0
            self.third.weight[:, 0] = 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(x))))
        out: torch.Tensor = self.fourth(torch.relu(self.third(hidden)))
        return out


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal((16, 16)).astype(np.float32) for _ in range(2)]
    with torch.no_grad():
        return [(each, Net()(torch.from_numpy(each)).argmax(1).numpy()) for each in inputs]


@pytest.fixture(scope="module")
def backend() -> Iterator[PyTorchBackend]:
    strategy = StrategySpec("hawq_v2", {"hawq_v2_loss": nn.functional.cross_entropy})
    calibration = CalibrationSpec(batches(), (32,))
    made = PyTorchBackend(TuningJob(ModelSpec("pytorch", live=Net()), calibration=calibration, strategy=strategy))
    made.set_statistics((), 32, made.calibrate((), [(i, {"x": x}) for i, (x, _) in enumerate(batches())]))
    yield made
    made.close()


@pytest.fixture
def config(backend: PyTorchBackend) -> TuningConfig:
    return TuningConfig(tuple((op.name, op.options[0]) for op in backend.facts().capability.ops), sampling_size=32)


def labelled(shard: int = 0, shards: int = 1) -> list[LabelledBatch]:
    every = [LabelledBatch(number, {"x": x}, y) for number, (x, y) in enumerate(batches())]
    return every[shard::shards]


@pytest.mark.parametrize("kind", ["op_mse", "op_sensitivity", "hessian_trace"])
def test_every_probe_ranks_the_planted_layer_first(backend: PyTorchBackend, config: TuningConfig, kind: str) -> None:
    if kind == "hessian_trace":
        scores = backend.probe_labelled(kind, config, (), labelled(), {})
        assert score_order(scores, LAYERS)[0] == PLANTED
        return
    scores = backend.probe(kind, config, (), [batch.feed for batch in labelled()], {})
    if kind == "op_sensitivity":  # the error that is left with the layer in fp32: the smallest is the worst layer's
        scores = {group: -score for group, score in scores.items()}
        assert score_order(scores, LAYERS)[0] == PLANTED
    else:  # what comes behind the layer carries its error on
        assert max(scores[name] for name in ("first", "second")) < 0.1 * scores[PLANTED]


def test_hessian_scores_of_shards_average_to_those_of_all_batches(
    backend: PyTorchBackend, config: TuningConfig
) -> None:
    whole = backend.probe_labelled("hessian_trace", config, LAYERS, labelled(), {})
    shards = [backend.probe_labelled("hessian_trace", config, LAYERS, labelled(shard, 2), {}) for shard in range(2)]
    assert {name: (shards[0][name] + shards[1][name]) / 2 for name in LAYERS} == dict(whole)


def test_labels_that_are_missing_and_groups_that_are_unknown_are_said(
    backend: PyTorchBackend, config: TuningConfig
) -> None:
    bare = [LabelledBatch(0, labelled()[0].feed, None)]
    with pytest.raises(UsageError, match="hawq_v2_loss compares outputs with labels"):
        backend.probe_labelled("hessian_trace", config, (), bare, {})
    with pytest.raises(TrialError, match="no group is named 'fifth'"):
        backend.probe("op_mse", config, ("fifth",), [], {})
