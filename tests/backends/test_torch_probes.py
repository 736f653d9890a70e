"""Tensor errors of exported graphs: what they are, and that no more is kept than must be."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.fx import GraphModule  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from distune.backends.pytorch.model import LoadedModule  # noqa: E402
from distune.backends.pytorch.probes import last_nodes, op_mse, walk  # noqa: E402
from distune.backends.pytorch.program import ExportedModule, export_module  # noqa: E402

DEPTH, WIDTH = 12, 8


class Chain(nn.Module):
    """Layers in a row, with an input that the last one reads again."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for layer in self.layers:
            out = torch.tanh(layer(out))
        return out + x


def chain(depth: int) -> ExportedModule:
    torch.manual_seed(2)
    return export_module(LoadedModule(Chain(depth).eval(), (torch.zeros(2, WIDTH),), ("x",), {"x": (0,)}))


@pytest.fixture(scope="module")
def model() -> ExportedModule:
    return chain(DEPTH)


def feeds(count: int = 2, rows: int = 5) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{"x": rng.standard_normal((rows, WIDTH)).astype(np.float32)} for _ in range(count)]


def changed(model: ExportedModule, layer: str, factor: float) -> GraphModule:
    """The graph with one layer's weight multiplied."""
    out = model.fresh()
    nodes = {node.name: node for node in out.graph.nodes}
    op = model.op[layer]
    with out.graph.inserting_before(nodes[op.node]):
        scaled = out.graph.call_function(torch.ops.aten.mul.Tensor, (nodes[op.weight_node], factor))
    nodes[op.node].replace_input_with(nodes[op.weight_node], scaled)
    out.recompile()
    return out


def outputs(model: ExportedModule) -> dict[str, str]:
    return last_nodes(model, {name: name for name in model.op if name.startswith("layers")})


def test_the_error_is_relative_to_the_power_and_begins_where_the_change_is(model: ExportedModule) -> None:
    scores = op_mse(model, changed(model, "layers.3", 1.5), outputs(model), feeds())
    assert [scores[f"layers.{n}"] for n in range(3)] == [0.0] * 3
    values: list[np.ndarray] = []
    expected = []
    for feed in feeds():
        runs = [
            dict(walk(m, [torch.from_numpy(feed["x"])])) for m in (model.graph_module, changed(model, "layers.3", 1.5))
        ]
        node = model.op["layers.3"].node
        values.append(runs[0][node].detach().double().numpy())
        expected.append(runs[1][node].detach().double().numpy() - values[-1])
    power = sum(float(np.square(v).sum()) for v in values)
    assert scores["layers.3"] == pytest.approx(sum(float(np.square(v).sum()) for v in expected) / power)


def test_a_quantized_output_is_read_dequantized(model: ExportedModule) -> None:
    out = model.fresh()
    node = next(node for node in out.graph.nodes if node.name == model.op["layers.0"].node)
    given = (0.05, 128, 0, 255, torch.uint8)
    with out.graph.inserting_after(node):
        quantize = out.graph.call_function(torch.ops.quantized_decomposed.quantize_per_tensor.default, (node, *given))
    with out.graph.inserting_after(quantize):
        dequantize = out.graph.call_function(
            torch.ops.quantized_decomposed.dequantize_per_tensor.default, (quantize, *given)
        )
    node.replace_all_uses_with(dequantize)
    quantize.replace_input_with(dequantize, node)
    out.recompile()
    score = op_mse(model, out, outputs(model), feeds())["layers.0"]
    assert 0.0 < score < 0.05**2 / 2


def test_what_is_kept_does_not_grow_with_the_model() -> None:
    peaks = {}
    for depth in (6, 18):
        model = chain(depth)
        candidate, wanted = changed(model, "layers.3", 1.5), outputs(model)
        with _Live(rows=5) as live:
            scores = op_mse(model, candidate, wanted, feeds(count=1))
        assert len(scores) == depth
        assert live.seen > 4 * depth
        peaks[depth] = live.peak
    assert peaks[6] == peaks[18] < 18


def test_a_graph_that_is_walked_gives_what_it_gives(model: ExportedModule) -> None:
    x = torch.from_numpy(feeds()[0]["x"])
    last = [value for _, value in walk(model.graph_module, [x])][-1]
    torch.testing.assert_close(last[0], model.graph_module(x))


class _Live(TorchDispatchMode):
    """Counts tensors of a batch of ``rows`` that are alive at once."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self._refs: list[weakref.ref[torch.Tensor]] = []
        self.seen = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape == (self._rows, WIDTH):
            self._refs.append(weakref.ref(out))
            self.seen += 1
        self._refs = [ref for ref in self._refs if ref() is not None]
        self.peak = max(self.peak, len(self._refs))
        return out
