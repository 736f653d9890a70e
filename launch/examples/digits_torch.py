"""The embedded example as a PyTorch module; its weights are those of ``digits_dwcnn.onnx``, batch norm folded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

MODEL = Path(__file__).resolve().parent / "digits_dwcnn.onnx"


class DigitsNet(nn.Module):
    """Depthwise-separable blocks behind a stem; input float32 [N, 1, 32, 32], output logits [N, 10]."""

    def __init__(self, stem: int, blocks: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, padding=1)
        for number, (inputs, outputs, stride) in enumerate(blocks):
            setattr(self, f"block{number}_dw", nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs))
            setattr(self, f"block{number}_pw", nn.Conv2d(inputs, outputs, 1))
        self.blocks = len(blocks)
        self.fc = nn.Linear(blocks[-1][1], 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        for number in range(self.blocks):
            x = torch.relu(getattr(self, f"block{number}_dw")(x))
            x = torch.relu(getattr(self, f"block{number}_pw")(x))
        features: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return features


def build() -> DigitsNet:
    """The trained network."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(MODEL).graph
    state = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    strides = {
        node.name: node.attribute[i].ints[0]
        for node in graph.node
        for i, a in enumerate(node.attribute)
        if a.name == "strides"
    }
    count = sum(name.endswith("_pw.weight") for name in state)
    blocks = []
    for number in range(count):
        weight = state[f"block{number}_pw.weight"]
        blocks.append((weight.shape[1], weight.shape[0], strides[f"block{number}_dw"]))
    network = DigitsNet(state["stem.weight"].shape[0], blocks)
    network.load_state_dict(state)
    return network.eval()
