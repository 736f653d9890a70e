"""Small PyTorch modules, and what the tests do with them again and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from distune.backends.base import Feed
from distune.backends.pytorch.backend import PyTorchBackend
from distune.backends.statistics import merge
from distune.config.job import CalibrationSpec, ModelSpec, TuningJob
from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace, build_space

CHANNELS, SIDE = 8, 8


class Residual(nn.Module):
    """Conv with batch norm and ReLU, a second one with an addition behind it, pooling, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(CHANNELS, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = torch.relu(self.conv2(x) + x)
        out: torch.Tensor = self.fc(self.pool(x).mean(dim=(2, 3)))
        return out


class Recurrent(nn.Module):
    """An LSTM between two Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(4, 4), nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.lstm(self.first(x))[0])
        return out


class Attention(nn.Module):
    """Token and mask in; the mask is added to the scores as -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        scores = scores.masked_fill(mask[:, None, :] == 0, float("-inf"))
        return torch.softmax(scores, -1) @ self.v(x)


class Branching(nn.Module):
    """Decides on values: nothing that torch.export can read."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Decision()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out


class Decision(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Constants(nn.Module):
    """Tensors that are no parameters: an attribute, a buffer that is not saved, and one that ``forward`` writes out."""

    def __init__(self, attribute: float, hidden: float, written: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.written = nn.Linear(4, 3), written
        self.shift = torch.full((3,), attribute)
        self.register_buffer("scale", torch.full((3,), hidden), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x) * self.scale + self.shift + torch.tensor([0.0, 0.0, self.written])
        return out


class Gate(nn.Module):
    """Cannot be exported."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.shift, self.dropout = torch.zeros(3), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x + self.shift) if x.sum() < 1e9 else x


class Gated(nn.Module):
    """Two parts that can be exported around a gate that cannot."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.gate = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), Gate(dropout)
        self.second = nn.Sequential(nn.ReLU(), nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.gate(self.first(x)))
        return out


def residual() -> Residual:
    """Seeded, its batch norm with statistics that matter."""
    torch.manual_seed(0)
    module = Residual()
    module.bn1.running_mean.uniform_(-0.5, 0.5)
    module.bn1.running_var.uniform_(0.5, 2.0)
    return module.eval()


def images(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Float32 [count, 3, SIDE, SIDE]."""
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def batches(count: int = 4, size: int = 8) -> list[tuple[int, Feed]]:
    """Numbered calibration batches for ``Residual``."""
    return [(number, {"image": images(size, number)}) for number in range(count)]


def backend(module: nn.Module, inputs: Any, partition: Any = "none", **changes: Any) -> PyTorchBackend:
    """The backend of a live module that is exported with ``inputs``."""
    loader = [(inputs, None)]
    spec = ModelSpec("pytorch", live=module, quant_format="default", partition=partition)
    return PyTorchBackend(TuningJob(spec, calibration=CalibrationSpec(loader), **changes))


def space(made: PyTorchBackend, approach: Any = "static", constraints: Sequence[Any] = ()) -> TuningSpace:
    """The tuning space of a backend."""
    return build_space(made.facts().capability, tuple(constraints), approach, {}, (32,))


def calibrated(made: PyTorchBackend, data: Iterable[tuple[int, Feed]], approach: Any = "static") -> TuningConfig:
    """Calibrate; gives the default config."""
    config = space(made, approach).default()
    made.set_statistics((), config.sampling_size, merge([made.calibrate((), data)]))
    return config
