"""A graph in a form that can be differentiated twice, and at the price of what it is made of.

torch has no second derivative of hardsigmoid. That of a convolution with groups it takes one group after another:
thousands of kernels for the depthwise layers of one network. But ``<g, c(x, w)>`` is linear in each of output gradient,
input and weight, so every derivative of a convolution is again one of three maps: what is left when one of the three is
taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.fx import GraphModule

_CONVOLUTIONS = (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default)
_GROUPS = 6
"""Position of the number of groups among their arguments."""


@dataclass(frozen=True)
class _Geometry:
    """How a convolution walks; of each axis, or one number for all."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def backward(self, grad: Tensor, data: Tensor, weight: Tensor, wanted: int) -> Tensor:
        """The derivative by the input (0) or the weight (1)."""
        mask = [wanted == 0, wanted == 1, False]
        shifts = [0] * len(self.stride)
        places = (self.stride, self.padding, self.dilation, False, shifts, self.groups)
        out: Tensor = torch.ops.aten.convolution_backward(grad, data, weight, None, *places, mask)[wanted]
        return out


def twice_differentiable(module: GraphModule) -> GraphModule:
    """Put the graph into that form, in place; its values stay."""
    for node in module.graph.nodes:
        grouped = len(node.args) > _GROUPS and node.args[_GROUPS] > 1
        if node.target in _CONVOLUTIONS and grouped:
            node.target = convolution
        elif node.target in _COMPOSED:
            node.target = _COMPOSED[node.target]
    module.recompile()
    return module


def convolution(
    data: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """As ``aten.conv1d``, ``conv2d`` and ``conv3d`` of a batch."""
    axes = weight.dim() - 2
    walk = [list(each) * (axes if len(each) == 1 else 1) for each in (stride, padding, dilation)]
    out: Tensor = _Output.apply(data, weight, _Geometry(walk[0], walk[1], walk[2], groups))
    return out if bias is None else out + bias.reshape(-1, *[1] * axes)


def _hardsigmoid(data: Tensor) -> Tensor:
    return torch.nn.functional.hardtanh(data + 3, 0.0, 6.0) / 6


def _hardsigmoid_in_place(data: Tensor) -> Tensor:
    return data.copy_(_hardsigmoid(data))


_COMPOSED = {
    torch.ops.aten.hardsigmoid.default: _hardsigmoid,
    torch.ops.aten.hardsigmoid_.default: _hardsigmoid_in_place,
}


class _Output(Function):  # type: ignore[misc]  # torch leaves it untyped
    """``c(data, weight)``."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(data, weight)
        ctx.geometry = geometry
        places = (geometry.stride, geometry.padding, geometry.dilation, False, [0] * len(geometry.stride))
        out: Tensor = torch.ops.aten.convolution(data, weight, None, *places, geometry.groups)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (data, weight) = grads, ctx.saved_tensors
        return *_derivatives(ctx, (_Input, _Weight), grad, data, weight), None


class _Input(Function):  # type: ignore[misc]  # torch leaves it untyped
    """The derivative of ``<grad, c(data, weight)>`` by the data, which are of ``shape``."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.geometry = geometry
        return geometry.backward(grad, grad.new_empty(1).expand(shape), weight, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (data,), (grad, weight) = grads, ctx.saved_tensors
        return *_derivatives(ctx, (_Output, _Weight), grad, data, weight), None, None


class _Weight(Function):  # type: ignore[misc]  # torch leaves it untyped
    """The derivative of ``<grad, c(data, weight)>`` by the weight, which is of ``shape``."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, data: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(grad, data)
        ctx.geometry = geometry
        return geometry.backward(grad, data, grad.new_empty(1).expand(shape), 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,), (grad, data) = grads, ctx.saved_tensors
        return *_derivatives(ctx, (_Output, _Input), grad, data, weight), None, None


def _derivatives(
    ctx: Any, maps: tuple[type[Function], ...], grad: Tensor, data: Tensor, weight: Tensor
) -> Iterator[Tensor | None]:
    """What each of ``maps`` makes of these, ``None`` where autograd does not need it.

    Args:
        maps: By the inputs of the function that is differentiated, in their order: each leaves out that input.
    """
    taken = {
        _Output: (data, weight),
        _Input: (grad, weight, data.shape),
        _Weight: (grad, data, weight.shape),
    }
    for by, needed in zip(maps, ctx.needs_input_grad, strict=False):  # the rest are no tensors
        yield by.apply(*taken[by], ctx.geometry) if needed else None
