"""Recipes that are carried out once, before anything is calibrated: they decide which ops there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames, attribute, has_factors
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.weights import add_constant, drop_unused_constants
from distune.errors import UsageError
from distune.space.capability import Recipe

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")

_WITHOUT_INTEGER_FORM = ("ConvActivationFusion", "GemmActivationFusion", "NchwcTransformer", "ConvAddActivationFusion")
"""Optimizers whose ops have no integer kernel, or run on one kind of CPU only."""


@dataclass(frozen=True)
class Preparation:
    """How the user's graph is simplified.

    Attributes:
        level: ONNX Runtime's graph optimization level.
        gemm_to_matmul: Gemm becomes MatMul and Add.
    """

    level: str = "ENABLE_BASIC"
    gemm_to_matmul: bool = False

    @classmethod
    def of(cls, recipes: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Preparation:
        """From the recipes of a job or of a tuning config.

        Raises:
            UsageError: There is no such level.
        """
        given = dict(recipes)
        level = str(given.get("graph_optimization_level") or cls.level).upper()
        if level not in LEVELS:
            raise UsageError(f"recipe graph_optimization_level: {level!r} is none of {', '.join(LEVELS)}")
        return cls(level, given.get("gemm_to_matmul") is True)

    @property
    def disabled_optimizers(self) -> tuple[str, ...]:
        """Optimizers of ONNX Runtime that are left out."""
        return _WITHOUT_INTEGER_FORM


def preparation_recipes(model: onnx.ModelProto) -> Iterator[Recipe]:
    """The recipes of this module that a user's model can use. They are fixed for a run."""
    yield Recipe("graph_optimization_level", None, (None,))
    if any(node.op_type == "Gemm" for node in model.graph.node):
        yield Recipe("gemm_to_matmul", False, (False,))


def gemm_to_matmul(model: onnx.ModelProto, user_types: dict[str, str]) -> None:
    """Replace every plain Gemm (no factors left, first input as it is) by a MatMul of its name and an Add, in place.

    Args:
        user_types: Op types by name; the new Adds are entered.
    """
    index, unused = GraphIndex(model), UnusedNames(model)
    transposed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        weight = index.initializers.get(node.input[1]) if node.op_type == "Gemm" else None
        if weight is None or has_factors(node) or attribute(node, "transA", 0):
            nodes.append(node)
            continue
        name = weight.name
        if attribute(node, "transB", 0):
            if name not in transposed:
                transposed[name] = add_constant(model, unused(f"{name}_transposed"), values_of(weight).T)
            name = transposed[name]
        has_bias = len(node.input) > 2 and bool(node.input[2])
        product = unused(f"{node.output[0]}_product") if has_bias else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], node.name))
        if has_bias:
            add = unused(f"{node.name}_Add")
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], add))
            user_types[add] = "Add"
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    drop_unused_constants(model)
