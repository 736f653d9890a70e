"""What ONNX Runtime runs, op type by op type: the capability table.

Static options hold what the CPU provider has an integer kernel for, or passes on unchanged, when it finds the op
between DequantizeLinear and QuantizeLinear. Weights that give the same numbers as others are not in it: symmetric uint8
is symmetric int8, and an asymmetric weight is of its activation's type. Asymmetric weights per channel are not offered
for grouped convolutions, which ONNX Runtime 1.31 then runs ten times slower than fp32 (depthwise ones of MobileNetV1).

Two kinds of options are there for the sake of the ops that they are grouped with, and run in fp32 between their pairs:
Add, Mul and Concat with int8 activations (x86); Relu and Clip with symmetric ones, whose range does not end at zero.

Not in the table, since ONNX Runtime 1.31 computes them in floating point between the two: Abs, Sign, Shrink, Mod,
GatherND, CenterCropPad, Where, LayerNormalization, InstanceNormalization, ConvTranspose, ReduceMean, HardSwish and
whatever else the graph may hold; and 16-bit activations, for which it has no computing kernel.

Dynamic options hold what it runs with activations quantized by DynamicQuantizeLinear, always uint8 asym.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from distune.space.op_config import OpConfig, TensorConfig

Kind = Literal["weighted", "lookup", "elementwise", "activation", "pass_through"]
"""How an op is quantized.

``weighted``: own weight, or two activations. ``lookup``: own table of values. ``elementwise``: input and output have
ranges of their own. ``activation``: merges into the range of what comes before it. ``pass_through``: output values are
input values (or zero), so both share scale and zero point.
"""

OP_KINDS: dict[str, Kind] = {
    "Conv": "weighted",
    "MatMul": "weighted",
    "Gemm": "weighted",
    "Gather": "lookup",
    "Add": "elementwise",
    "Mul": "elementwise",
    "Sigmoid": "elementwise",
    "LeakyRelu": "elementwise",
    "AveragePool": "elementwise",
    "GlobalAveragePool": "elementwise",
    "Concat": "elementwise",
    "Softmax": "elementwise",
    "Relu": "activation",
    "Clip": "activation",
    "MaxPool": "pass_through",
    "Split": "pass_through",
    "Pad": "pass_through",
    "Resize": "pass_through",
    "Reshape": "pass_through",
    "Transpose": "pass_through",
    "Squeeze": "pass_through",
    "Unsqueeze": "pass_through",
    "Flatten": "pass_through",
    "Slice": "pass_through",
    "ReduceMax": "pass_through",
    "ReduceMin": "pass_through",
    "ArgMax": "pass_through",
    "Expand": "pass_through",
    "Tile": "pass_through",
    "DepthToSpace": "pass_through",
    "GatherElements": "pass_through",
}

SAME_RANGE = frozenset({"ReduceMax", "ReduceMin", "Expand", "Tile", "DepthToSpace"})
"""Op types whose integer kernel needs one scale on both sides, for which ONNX Runtime's quantizer would write two."""

WEIGHTS: tuple[TensorConfig, ...] = tuple(
    TensorConfig(dtype, scheme, granularity)
    for dtype, scheme in (("int8", "sym"), ("uint8", "asym"), ("int8", "asym"))
    for granularity in ("per_channel", "per_tensor")
)
"""Weights of Conv, MatMul and Gemm, those with the fastest kernels first."""

ACTIVATIONS: tuple[TensorConfig, ...] = tuple(
    TensorConfig(dtype, scheme, "per_tensor", algorithm)
    for dtype, scheme in (("uint8", "asym"), ("uint8", "sym"), ("int8", "sym"), ("int8", "asym"))
    for algorithm in ("minmax", "percentile", "kl")
)
"""Activations: uint8 first, since x86 runs int8 slower. int8 asym has the numbers of uint8 asym, but other kernels."""

WEIGHTED_OPTIONS = tuple(
    OpConfig("static", activation, weight)
    for activation in ACTIVATIONS
    for weight in WEIGHTS
    if weight.scheme == "sym" or weight.dtype == activation.dtype
)
GROUPED_CONV_OPTIONS = tuple(
    option
    for option in WEIGHTED_OPTIONS
    if option.weight is None or (option.weight.scheme, option.weight.granularity) != ("asym", "per_channel")
)
ACTIVATION_OPTIONS = tuple(OpConfig("static", activation) for activation in ACTIVATIONS)
LOOKUP_OPTIONS = (OpConfig("static", ACTIVATIONS[0], TensorConfig("uint8", "asym")),)
LOOKUP_FOLLOWER_OPTIONS = (OpConfig("static", ACTIVATIONS[0]),)

DYNAMIC_ACTIVATION = TensorConfig("uint8", "asym")


def _dynamic(*weights: tuple[str, str, str]) -> tuple[OpConfig, ...]:
    return tuple(OpConfig("dynamic", DYNAMIC_ACTIVATION, TensorConfig(*weight)) for weight in weights)


_PRODUCT = _dynamic(
    ("int8", "sym", "per_channel"),
    ("int8", "sym", "per_tensor"),
    ("int8", "asym", "per_channel"),
    ("int8", "asym", "per_tensor"),
)

DYNAMIC_OPTIONS: Mapping[str, tuple[OpConfig, ...]] = {
    "MatMul": _PRODUCT,
    "Gemm": _PRODUCT,
    "Conv": _dynamic(("int8", "sym", "per_channel"), ("int8", "sym", "per_tensor"), ("uint8", "asym", "per_tensor")),
    "Gather": (OpConfig("dynamic", None, TensorConfig("int8")),),
    "LSTM": _dynamic(("int8", "sym", "per_channel"), ("int8", "sym", "per_tensor")),
    "Attention": _dynamic(("int8", "sym", "per_channel"), ("int8", "sym", "per_tensor")),
    "EmbedLayerNormalization": (OpConfig("dynamic", None, TensorConfig("uint8", "asym")),),
}
"""Options of ops with a constant weight, the most accurate first."""
