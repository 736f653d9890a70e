"""The recipes that a model can use, apart from those that only keep ops in fp32."""

from __future__ import annotations

from collections.abc import Iterator

from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.equalization import pairs
from distune.backends.onnxruntime.recipes.layers import layers
from distune.backends.onnxruntime.recipes.smooth_quant import smoothable
from distune.space.capability import Capability, Recipe

_ON_OFF = (False,)
"""Choices of what is off by default and tuned only where the user gives a list: not cheap, or not harmless."""


def graph_recipes(model: PreparedModel, capability: Capability) -> Iterator[Recipe]:
    """What can be done to the graph of ``model`` and to its quantized form; none of it is tuned by default."""
    yield from _pre_and_post(model, capability)
    if smoothable(model):
        yield Recipe(
            "smooth_quant",
            False,
            _ON_OFF,
            "Move outliers of activations into the weights of Gemm and MatMul; the value is alpha, or 'auto'.",
            variant=True,
            modes=("static", "dynamic"),
            leads=True,
        )
        yield Recipe(
            "smooth_quant_args",
            "",
            ("",),
            "Settings of smooth_quant that differ from its defaults, as JSON.",
            variant=True,
            modes=("static", "dynamic"),
        )
    if pairs(model):
        yield Recipe(
            "cross_layer_equalization",
            False,
            _ON_OFF,
            "Rescale the channels between two layers so that both have weights of like ranges.",
            variant=True,
            modes=("static", "dynamic"),
        )
    found = list(layers(model))
    if not found:
        return
    yield Recipe(
        "adaround",
        False,
        _ON_OFF,
        "Round each weight up or down by the layer's output error instead of to nearest.",
        variant=True,
        modes=("static",),
    )
    yield Recipe(
        "weight_correction",
        False,
        _ON_OFF,
        "Give each output channel of a quantized weight the mean and variance of the fp32 one.",
        modes=("static",),
    )
    if any(layer.bias for layer in found):
        yield Recipe(
            "fast_bias_correction",
            False,
            _ON_OFF,
            "Take the mean error that quantized weights bring to the outputs off the biases.",
            modes=("static",),
        )
    yield Recipe(
        "add_qdq_pair_to_weight",
        False,
        _ON_OFF,
        "Store weights in fp32 with QuantizeLinear and DequantizeLinear behind them.",
        modes=("static",),
    )
    yield Recipe(
        "dedicated_qdq_pair",
        False,
        _ON_OFF,
        "Give every op that reads a tensor a QuantizeLinear and DequantizeLinear of its own.",
        modes=("static",),
    )
    yield Recipe(
        "optypes_to_exclude_output_quant",
        "",
        ("",),
        "Op types whose outputs are not quantized, joined by commas.",
        modes=("static",),
    )
    yield Recipe(
        "layer_wise_quant",
        False,
        _ON_OFF,
        "Calibrate few tensors at a time, over more runs of the model: less memory, the same statistics.",
        variant=True,
        modes=("static",),
    )
    types = {node.op_type for node in model.proto.graph.node}
    if "MaxPool" in types:
        yield Recipe(
            "scale_propagation_max_pooling",
            True,
            (True,),
            "MaxPool passes the scale of its input on; False: it runs in fp32 and its output has its own scale.",
            modes=("static",),
        )
    if "Concat" in types:
        yield Recipe(
            "scale_propagation_concat",
            False,
            _ON_OFF,
            "The inputs of Concat take the scale of its output, so that it only copies.",
            modes=("static",),
        )


def _pre_and_post(model: PreparedModel, capability: Capability) -> Iterator[Recipe]:
    """Ops with no Conv, MatMul or Gemm before them, or none behind them; whole groups only. Tuned by default."""
    heavy = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    after, before = _reach(model, heavy, forward=True), _reach(model, heavy, forward=False)
    inner = {op.group for op in capability.ops if op.name in after and op.name in before}
    outer = tuple(op.name for op in capability.ops if op.group not in inner)
    if outer and inner:
        yield Recipe(
            "pre_post_process_quantization",
            True,
            (True, False),
            "False keeps ops before the first and behind the last Conv, MatMul or Gemm in fp32.",
            fp32_ops=outer,
        )


def _reach(model: PreparedModel, op_types: tuple[str, ...], forward: bool) -> set[str]:
    """Names of the nodes of ``op_types`` and of all that lie behind (``forward``) or before one of them."""
    reached: set[str] = set()
    tensors: set[str] = set()
    nodes = list(model.proto.graph.node)
    for node in nodes if forward else reversed(nodes):
        sources, made = (node.input, node.output) if forward else (node.output, node.input)
        if node.op_type in op_types or any(name in tensors for name in sources):
            reached.add(node.name)
            tensors.update(name for name in made if name)
    return reached
