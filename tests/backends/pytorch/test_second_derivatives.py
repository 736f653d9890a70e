"""Graphs of the Hessian probe can be differentiated twice, and what they compute is the model."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.autograd import grad, gradcheck, gradgradcheck  # noqa: E402

from distune.backends.pytorch.second_derivatives import convolution, twice_differentiable  # noqa: E402
from tests.backends.torch_models import backend  # noqa: E402

CASES = {
    "depthwise": ((2, 4, 7, 6), (4, 1, 3, 3), ([1, 1], [1, 1], [1, 1], 4)),
    "two outputs a channel, strides that leave a rest": ((2, 3, 8, 8), (6, 1, 3, 3), ([2, 3], [1, 0], [1, 1], 3)),
    "pairs, one number for all axes": ((2, 4, 9, 9), (6, 2, 3, 3), ([2], [2], [2], 2)),
    "sequences": ((3, 4, 9), (4, 2, 3), ([2], [1], [1], 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_of_a_grouped_convolution(case: str) -> None:
    shape, kernel, places = CASES[case]
    torch.manual_seed(0)
    data = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(kernel[0], dtype=torch.float64, requires_grad=True)
    own = (torch.ops.aten.conv1d if len(kernel) == 3 else torch.ops.aten.conv2d)(data, weight, bias, *places)
    torch.testing.assert_close(convolution(data, weight, bias, *places), own)

    def squared(*tensors: torch.Tensor) -> torch.Tensor:
        return convolution(*tensors, *places).square()

    assert gradcheck(squared, (data, weight, bias), fast_mode=True)
    assert gradgradcheck(squared, (data, weight, bias), fast_mode=True)


def test_a_depthwise_layer_takes_one_kernel_a_derivative() -> None:
    """torch's own takes one for each of its 64 channels."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 64, 3, groups=64, padding=1), nn.Tanh(), nn.Conv2d(64, 64, 3, groups=64))
    image = torch.randn(2, 64, 9, 9)
    model = backend(net, image.numpy())._model
    products, kernels = [], []
    for module in (model.fresh(), twice_differentiable(model.fresh())):
        weight = module.get_parameter("0.weight").requires_grad_(True)
        (gradient,) = grad(module(image).square().sum(), weight, create_graph=True)
        with torch.profiler.profile() as profile:
            products.append(grad(gradient, weight, torch.ones_like(weight))[0])
        kernels.append(sum("mkldnn_convolution" in event.name for event in profile.events()))
    torch.testing.assert_close(products[1], products[0], rtol=1e-3, atol=1e-3)
    assert kernels[1] < 16 < 64 <= kernels[0]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_net_with_hardsigmoid_has_second_derivatives(in_place: bool) -> None:
    """Squeeze-and-excite of MobileNetV3; torch has none of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardsigmoid(inplace=in_place), nn.Conv2d(4, 2, 3))
    image = 4 * torch.randn(2, 3, 9, 9)
    module = twice_differentiable(backend(net, image.numpy())._model.fresh())
    torch.testing.assert_close(module(image), net(image))
    weight = module.get_parameter("0.weight").requires_grad_(True)
    (gradient,) = grad(module(image).square().sum(), weight, create_graph=True)
    (own,) = grad(net(image).square().sum(), net[0].weight)
    torch.testing.assert_close(gradient, own)
    (product,) = grad(gradient.square().sum() / 2, weight)  # H g, and by differences
    with torch.no_grad():
        step = 1e-3 / own.norm()
        net[0].weight += step * own
    (beside,) = grad(net(image).square().sum(), net[0].weight)
    torch.testing.assert_close(product, (beside - own) / step, rtol=0.1, atol=0.02 * float(product.abs().max()))
