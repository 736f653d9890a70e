"""What Inductor's x86 lowering runs on integers, op type by op type: the capability table.

Weights are symmetric int8: the integer kernels of oneDNN take no other. Kernels want a scale per output channel; one
scale for the whole tensor is written as equal scales for all channels, which gives the same numbers. Activations are
uint8 or int8, each with a zero point of its own or with one in the middle of the range.

Only the *inputs* of quantized ops are quantized. An output stays in floating point until an op that reads it is
quantized too; the lowering then fuses the rounding into the kernel that writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from distune.space.op_config import OpConfig, TensorConfig

Kind = Literal["weighted", "lookup", "residual", "product", "joined", "pooled"]
"""How an op is quantized.

``weighted``: its input and its weight. ``lookup``: its table alone. ``residual``: an addition that is computed in the
kernel of the convolution before it; its other input is quantized. ``product``: both inputs. ``joined``: all inputs and
the output share one range. ``pooled``: its input.
"""

OP_KINDS: Mapping[str, Kind] = {
    "Conv1d": "weighted",
    "Conv2d": "weighted",
    "Linear": "weighted",
    "Embedding": "lookup",
    "EmbeddingBag": "lookup",
    "add": "residual",
    "mul": "product",
    "cat": "joined",
    "MaxPool2d": "pooled",
    "AvgPool2d": "pooled",
    "AdaptiveAvgPool2d": "pooled",
    "mean": "pooled",
    "flatten": "pooled",
}

SAME_RANGE = frozenset({"MaxPool2d", "flatten"})
"""Ops whose output values are input values: who reads them takes the scale of their input."""

HALF_TYPES = frozenset(
    {"Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear"}
)
"""Op types that have kernels in bf16 and fp16."""

NOT_QUANTIZABLE: Mapping[str, str] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "PT2E leaves it as it is: torch has no maintained integer kernel for it"),
    **dict.fromkeys(
        ("matmul", "bmm", "scaled_dot_product_attention"),
        "Inductor's x86 lowering has no integer kernel for a product of two activations",
    ),
    "Conv3d": "Inductor's x86 lowering has integer kernels for Conv1d and Conv2d alone",
    **dict.fromkeys(
        ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
        "Inductor's x86 lowering has no integer kernel for it: quantized, it takes it for a plain convolution",
    ),
    **dict.fromkeys(
        ("ReLU", "ReLU6", "Hardtanh", "Hardswish", "SiLU", "GELU", "Sigmoid", "Tanh", "LeakyReLU", "Hardsigmoid"),
        "computed in floating point in the kernel of the op before it or after it",
    ),
    **dict.fromkeys(("LayerNorm", "Softmax"), "computed in floating point: it loses too much in 8 bits"),
}

WEIGHTS: tuple[TensorConfig, ...] = (
    TensorConfig("int8", "sym", "per_channel"),
    TensorConfig("int8", "sym", "per_tensor"),
)

ACTIVATIONS: tuple[TensorConfig, ...] = tuple(
    TensorConfig(dtype, scheme, "per_tensor", algorithm)
    for dtype, scheme in (("uint8", "asym"), ("uint8", "sym"), ("int8", "sym"), ("int8", "asym"))
    for algorithm in ("minmax", "percentile", "kl", "moving_average")
)
"""Activations, those with the fastest kernels first."""

WEIGHTED_OPTIONS = tuple(OpConfig("static", activation, weight) for activation in ACTIVATIONS for weight in WEIGHTS)
ACTIVATION_OPTIONS = tuple(OpConfig("static", activation) for activation in ACTIVATIONS)
LOOKUP_OPTIONS = tuple(OpConfig("static", None, weight) for weight in WEIGHTS)
LOOKUP_DYNAMIC_OPTIONS = tuple(OpConfig("dynamic", None, weight) for weight in WEIGHTS)

DYNAMIC_ACTIVATION = TensorConfig("uint8", "asym")
DYNAMIC_OPTIONS = tuple(OpConfig("dynamic", DYNAMIC_ACTIVATION, weight) for weight in WEIGHTS)
"""Of Linear, the one op type whose scales the lowering takes as tensors."""
