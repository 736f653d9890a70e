"""A quantized graph as ``.pt2`` and as ONNX: both give the numbers of the reference graph."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("torchao")
pytest.importorskip("onnxscript")

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from distune.backends.pytorch.capability import inspect
from distune.backends.pytorch.convert import converted
from distune.backends.pytorch.model import LoadedModule
from distune.backends.pytorch.onnx_export import archive_to_onnx
from distune.backends.pytorch.program import ExportedModule, export_module, saved_program
from distune.space.op_config import FP32, Mode, TuningConfig


class Text(nn.Module):
    """Embedding and Linears; batch and length are dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(nn.functional.gelu(self.up(self.table(ids)))).mean(1)
        return out


def image_model() -> ExportedModule:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)
    ).eval()
    return export_module(LoadedModule(module, (torch.randn(4, 1, 8, 8),), ("input",), {"input": (0,)})).folded()


def text_model() -> ExportedModule:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (4, 7))
    return export_module(LoadedModule(Text().eval(), (ids,), ("ids",), {"ids": (0, 1)})).folded()


def quantized(model: ExportedModule, mode: Mode) -> torch.fx.GraphModule:
    options = [(op.name, [*(o for o in op.options if o.mode == mode), FP32][0]) for op in inspect(model).ops]
    assert any(option.is_quantized for _, option in options)
    return converted(model, TuningConfig(tuple(options)), dict.fromkeys(model.nodes, (-3.0, 3.0)))


def run(content: bytes, feed: dict[str, np.ndarray], optimized: bool) -> np.ndarray:
    settings = onnxruntime.SessionOptions()
    if not optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, settings)
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_onnx_of_text_gives_the_same_numbers_for_other_batches_and_lengths(mode: Mode) -> None:
    model = text_model()
    graph = quantized(model, mode)
    content = archive_to_onnx(saved_program(graph, model))
    ids = torch.randint(0, 20, (9, 5))
    with torch.no_grad():
        expected = graph(ids).numpy()
    # The same scales and the same rounding; sums of floats may be taken in another order.
    assert np.abs(run(content, {"ids": ids.numpy()}, optimized=False) - expected).max() < 1e-6
    proto = onnx.load_model_from_string(content)
    assert [size.dim_param for size in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "axis_1"]


def test_onnx_of_images_runs_on_integers_and_differs_by_rounding_alone() -> None:
    model = image_model()
    graph = quantized(model, "static")
    content = archive_to_onnx(saved_program(graph, model))
    proto = onnx.load_model_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    weights = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
    assert sorted(len(t.dims) for t in weights) == [2, 4]
    images = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        expected = graph(images).numpy()
    assert np.abs(run(content, {"input": images.numpy()}, optimized=False) - expected).max() < 1e-5
    # Integer kernels sum exactly and round once: an activation between two steps (of 6/255) may go to the other one.
    integers = run(content, {"input": images.numpy()}, optimized=True)
    assert np.abs(integers - expected).max() < 4 * 6 / 255
    assert (integers.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_a_saved_program_gives_equal_outputs_for_another_batch() -> None:
    model = image_model()
    graph = quantized(model, "static")
    module = torch.export.load(io.BytesIO(saved_program(graph, model))).module()
    images = torch.randn(9, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(images), graph(images))
