"""The recipes that a model can use, apart from those that only keep ops in fp32."""

from __future__ import annotations

from collections.abc import Iterator

from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.equalization import pairs
from distune.backends.onnxruntime.recipes.layers import layers
from distune.backends.onnxruntime.recipes.smooth_quant import smoothable
from distune.backends.recipes.catalogue import ON_OFF, shared_recipes
from distune.space.capability import Capability, Recipe


def graph_recipes(model: PreparedModel, capability: Capability) -> Iterator[Recipe]:
    """What can be done to the graph of ``model`` and to its quantized form; none of it is tuned by default."""
    yield from _pre_and_post(model, capability)
    found = list(layers(model))
    yield from shared_recipes(smoothable(model), pairs(model), found)
    if not found:
        return
    yield Recipe(
        "add_qdq_pair_to_weight",
        False,
        ON_OFF,
        modes=("static",),
    )
    yield Recipe(
        "dedicated_qdq_pair",
        False,
        ON_OFF,
        modes=("static",),
    )
    yield Recipe(
        "optypes_to_exclude_output_quant",
        "",
        ("",),
        modes=("static",),
    )
    yield Recipe(
        "layer_wise_quant",
        False,
        ON_OFF,
        variant=True,
        modes=("static",),
    )
    types = {node.op_type for node in model.proto.graph.node}
    if "MaxPool" in types:
        yield Recipe(
            "scale_propagation_max_pooling",
            True,
            (True,),
            modes=("static",),
        )
    if "Concat" in types:
        yield Recipe(
            "scale_propagation_concat",
            False,
            ON_OFF,
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
