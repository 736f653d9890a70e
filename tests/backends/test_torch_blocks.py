"""Transformer layers are found by what they hold, wherever they are and whatever they are called."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from distune.backends.pytorch.blocks import find_blocks  # noqa: E402
from distune.backends.pytorch.model import LoadedModule  # noqa: E402
from distune.backends.pytorch.program import ExportedModule, export_module  # noqa: E402


def linear_blocks(model: ExportedModule) -> list[list[str]]:
    groups = {op.name: op.name for op in model.ops if op.op_type in ("Linear", "Conv2d")}
    return [list(block) for block in find_blocks(model, groups)]


def exported(module: nn.Module, *inputs: torch.Tensor, names: tuple[str, ...] = ("x",)) -> ExportedModule:
    axes = dict.fromkeys(names, (0, 1))
    return export_module(LoadedModule(module.eval(), inputs, names, axes))


class Attention(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / math.sqrt(x.shape[-1])
        out: torch.Tensor = self.out(torch.softmax(scores, -1) @ self.value(x))
        return out


class Layer(nn.Module):
    """Attention in a module of its own, as in BERT."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.attention, self.up, self.down = Attention(width), nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    def __init__(self, layers: int, named: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        if named:
            self.early, self.late = Layer(), Layer()
        else:
            self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in (self.early, self.late) if hasattr(self, "early") else self.layers:
            x = layer(x)
        out: torch.Tensor = self.head(x)
        return out


class Attentions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Attention() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = x + part(x)
        return x


def layer_of(path: str) -> list[str]:
    inner = ("attention.query", "attention.key", "attention.value", "attention.out", "up", "down")
    return [f"{path}.{name}" for name in inner]


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_of_a_list_with_attention_in_a_module_of_its_own(layers: int) -> None:
    model = exported(Model(layers), torch.zeros(2, 5, 8))
    assert linear_blocks(model) == [layer_of(f"layers.{n}") for n in range(layers)]


def test_layers_that_are_no_list() -> None:
    model = exported(Model(2, named=True), torch.zeros(2, 5, 8))
    assert linear_blocks(model) == [layer_of("early"), layer_of("late")]


def test_torchs_own_encoder_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    found = linear_blocks(exported(encoder, torch.zeros(2, 5, 8), names=("src",)))
    assert len(found) == 2
    assert all({f"layers.{n}.linear1", f"layers.{n}.linear2"} <= set(block) for n, block in enumerate(found))
    assert all(name.startswith(f"layers.{n}.") for n, block in enumerate(found) for name in block)


def test_attention_without_layers_behind_it_and_convolutions_are_no_blocks() -> None:
    attentions = exported(Attentions(), torch.zeros(2, 5, 8))
    assert linear_blocks(attentions) == []
    convolutions = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()) for _ in range(3)))
    assert linear_blocks(exported(convolutions, torch.zeros(2, 3, 9, 9), names=("input",))) == []


@pytest.mark.assets
def test_the_real_transformers(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(assets))
    from_assets: ModuleType = __import__("asset_models")
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    gpt = exported(from_assets.load_chargpt(assets / "models/chargpt_shakespeare.onnx"), tokens, names=("input_ids",))
    assert linear_blocks(gpt) == [[f"blocks.{n}.{name}" for name in ("qkv", "proj", "up", "down")] for n in range(4)]
    minilm = from_assets.load_minilm(assets / "models/minilm_stsb.onnx")
    both = exported(minilm, tokens, torch.ones_like(tokens), names=("input_ids", "attention_mask"))
    names = ("q", "k", "v", "o", "up", "down")
    assert linear_blocks(both) == [[f"layers.{n}.{name}" for name in names] for n in range(6)]
    sys.modules.pop("asset_models", None)
