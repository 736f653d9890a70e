"""What the x86 lowering has no right integer kernel for stays in floating point, and the plan says why (about 20 s)."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86  # noqa: E402

from tests.backends.torch_models import backend  # noqa: E402

quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
by_channel = torch.ops.quantized_decomposed.dequantize_per_channel.default


class Many(nn.Module):
    """Every kind of op that is left out, behind one Conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.deep = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.up(self.conv(image))
        x = self.deep(x.unsqueeze(1)).squeeze(1)
        x = torch.matmul(x, x.transpose(-1, -2))
        x = F.scaled_dot_product_attention(x, x, x)
        out: torch.Tensor = torch.bmm(x.flatten(0, 1), x.flatten(0, 1))
        return out


def test_they_are_listed_with_the_reason() -> None:
    made = backend(Many(), np.zeros((2, 3, 4, 4), np.float32))
    try:
        capability = made.facts().capability
    finally:
        made.close()
    assert [op.name for op in capability.ops] == ["conv"]
    reasons = {op_type: reason for _, op_type, reason in capability.excluded}
    assert "takes it for a plain convolution" in reasons["ConvTranspose2d"]
    assert "Conv1d and Conv2d alone" in reasons["Conv3d"]
    for product in ("matmul", "bmm", "scaled_dot_product_attention"):
        assert "no integer kernel for a product of two activations" in reasons[product]


def kernels(module: nn.Module, *examples: torch.Tensor) -> list[str]:
    """Functions of the graph after the lowering."""
    graph = torch.export.export(module.eval(), examples).module()
    with torch.no_grad():
        lowered = lower_pt2e_quantized_to_x86(graph, examples)
    return [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]


def rounded(value: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = dequantize(quantize(value, 0.02, 128, 0, 255, torch.uint8), 0.02, 128, 0, 255, torch.uint8)
    return out


@pytest.mark.parametrize("product", [torch.matmul, torch.bmm, lambda a, b: F.scaled_dot_product_attention(a, b, b)])
def test_products_of_two_activations_stay_in_floating_point_when_both_are_rounded(product: object) -> None:
    class Product(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = product(rounded(a), rounded(b))  # type: ignore[operator]
            return out

    called = kernels(Product(), torch.randn(4, 8, 8), torch.randn(4, 8, 8))
    assert any("dequantize" in name for name in called)
    assert not any(name.startswith("onednn.q") for name in called)


class Weighted(nn.Module):
    """A convolution, plain or not, with an integer weight of 8 channels."""

    def __init__(self, shape: tuple[int, ...], transposed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("weight", torch.randint(-127, 127, shape, dtype=torch.int8))
        self.register_buffer("scale", torch.full((8,), 0.01))
        self.register_buffer("zero", torch.zeros(8, dtype=torch.int64))
        self.transposed = transposed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = by_channel(self.weight, self.scale, self.zero, int(self.transposed), -128, 127, torch.int8)
        if self.transposed:
            return F.conv_transpose2d(rounded(x), weight)
        return F.conv3d(rounded(x), weight)


def test_a_rounded_conv3d_stays_in_floating_point() -> None:
    called = kernels(Weighted((8, 8, 3, 3, 3), False), torch.randn(2, 8, 6, 6, 6))
    assert not any(name.startswith("onednn.q") for name in called)


def test_a_rounded_transposed_convolution_would_be_lowered_to_another_function() -> None:
    """The day this fails the lowering does it right, and ConvTranspose can be offered."""
    assert "onednn.qconv_pointwise.default" in kernels(Weighted((8, 8, 3, 3), True), torch.randn(2, 8, 6, 6))
