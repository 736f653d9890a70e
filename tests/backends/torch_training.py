"""A small network whose post-training int8 form loses its accuracy, data to train it, and jobs about both."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distune.config.job import ComponentSpec, ModelSpec, TrainSpec, TuningJob

FAINT = 1000.0


class Net(nn.Module):
    """Convolutions with batch norm of unusual settings, a residual addition, pooling and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 8, 3, padding=1)
        self.b1 = nn.BatchNorm2d(8, eps=1e-3, momentum=0.3)
        self.c2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.b2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.c3 = nn.Conv2d(8, 8, 1, bias=False)
        self.b3 = nn.BatchNorm2d(8, eps=1e-3)
        self.c4 = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(128, 4)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b1(self.c1(input)))
        y = torch.relu(self.b3(self.c3(self.drop(self.b2(self.c2(x))))))
        out: torch.Tensor = self.fc(self.pool(torch.relu(y + self.c4(y))).flatten(1))
        return out


@cache
def data(count: int = 512, seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Noisy images [count, 1, 8, 8], brightest in one of four quarters, which is the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.normal(0, 0.8, (count, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0
    return images, labels


class Batches:
    """A live dataloader of the training data."""

    batch_size = 64

    def __iter__(self) -> Any:
        images, labels = data()
        for start in range(0, len(labels), self.batch_size):
            yield images[start : start + self.batch_size], labels[start : start + self.batch_size]


@cache
def trained_state() -> dict[str, torch.Tensor]:
    """Weights of a ``Net`` that knows the data, with one input channel of ``c3`` that is faint and weighs much.

    The scale of the other channels' weights then leaves them a few integers, as behind the batch norms of trained
    MobileNets (M. Nagel et al., arXiv:1906.04721, section 3).
    """
    torch.manual_seed(1)
    net = Net()
    images, labels = (torch.from_numpy(array) for array in data())
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        for channel in (1, 4):
            net.b2.weight[channel] /= FAINT
            net.b2.bias[channel] /= FAINT
            net.c3.weight[:, channel] *= FAINT
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def network() -> Net:
    """A fresh trained network in eval mode."""
    net = Net()
    net.load_state_dict(trained_state())
    return net.eval()


def job(folder: Path | None = None, **train: Any) -> TuningJob:
    """A job that trains ``network``."""
    spec = TrainSpec(
        **{
            "dataloader": Batches(),
            "optimizer": ComponentSpec("Adam", {"lr": 0.002}),
            "end_epoch": 2,
            **train,
        }
    )
    example = data()[0][:2]
    return TuningJob(
        ModelSpec("pytorch", live=network(), example_inputs=example),
        approach="qat",
        train=spec,
        workspace="" if folder is None else str(folder),
    )


def accuracy(model: Any) -> float:
    """Share of other data that a ``RunnableModel`` classifies rightly."""
    images, labels = data(400, seed=9)
    outputs = model.predict({"input": images})[0]
    return float((outputs.argmax(1) == labels).mean())
