"""Looking things up in an ONNX graph: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import onnx
from onnx import helper

_T = TypeVar("_T")

FLOAT_TYPES = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16})
"""Element types that can be quantized."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Op types whose second input is a weight where it is constant."""

GEMM_FACTORS = {"alpha": 1, "beta": 2}
"""Attributes of Gemm that multiply, and the position of the input that they can be multiplied into beforehand."""


class GraphIndex:
    """Indexes of the top-level graph of ``model``; made anew after the graph has changed.

    Attributes:
        producer: Node that writes a tensor, by tensor name.
        consumers: Nodes that read a tensor, by tensor name, in graph order, a node once.
        nodes: Nodes by name.
        initializers: Constant tensors by name.
        inputs, outputs: Names of the graph's inputs (without initializers) and outputs, in order.
        element_type: ``TensorProto`` element type by tensor name, where it is known.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in graph.node}
        self.initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs: tuple[str, ...] = tuple(i.name for i in graph.input if i.name not in self.initializers)
        self.outputs: tuple[str, ...] = tuple(o.name for o in graph.output)
        self.element_type: dict[str, int] = {name: tensor.data_type for name, tensor in self.initializers.items()}
        for info in (*graph.value_info, *graph.input, *graph.output):
            self.element_type[info.name] = info.type.tensor_type.elem_type
        for node in graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in dict.fromkeys(tensors_read(node)):
                self.consumers.setdefault(name, []).append(node)

    def is_constant(self, tensor: str) -> bool:
        """The tensor is an initializer or the output of a ``Constant`` node."""
        producer = self.producer.get(tensor)
        return tensor in self.initializers or (producer is not None and producer.op_type == "Constant")

    def is_float(self, tensor: str) -> bool:
        """The tensor's elements are known to be of a type that can be quantized."""
        return self.element_type.get(tensor) in FLOAT_TYPES

    def only_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads ``tensor``; ``None`` if there are more, none, or it is an output of the graph."""
        nodes = self.consumers.get(tensor, [])
        return nodes[0] if len(nodes) == 1 and tensor not in self.outputs else None


class UnusedNames:
    """Names for new tensors and nodes, such as none in ``model`` has, the graphs inside its graph included.

    Made anew after the graph has changed by other means.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = set(names_in(model.graph))

    def __call__(self, name: str) -> str:
        """``name``, or a longer one where that is taken; it is taken from now on."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def names_in(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the tensors and nodes of a graph, and of those inside it."""
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from (node.name, *node.output)
        for item in node.attribute:
            if item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                for inner in (item.g, *item.graphs):
                    yield from names_in(inner)


def replace_nodes(model: onnx.ModelProto, by: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
    """Put other nodes in the places of those that ``by`` names, or none; the order of the rest stays."""
    nodes = [new for node in model.graph.node for new in by.get(node.name, (node,))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def shapes_in(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Lengths of the axes of a tensor, by its name, where their number is known; ``None`` where a length is not."""
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in (*model.graph.value_info, *model.graph.input)
        if value.type.tensor_type.HasField("shape")
    }


def tensors_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {name for inner in graph.node for name in inner.output} | {i.name for i in graph.input}
            made |= {tensor.name for tensor in graph.initializer}
            for inner in graph.node:
                yield from (name for name in tensors_read(inner) if name not in made)
            yield from (output.name for output in graph.output if output.name not in made)


def has_factors(gemm: onnx.NodeProto) -> bool:
    """Whether a Gemm multiplies its product or its bias by anything but 1."""
    return any(attribute(gemm, name, 1.0) != 1.0 for name in GEMM_FACTORS)


def attribute(node: onnx.NodeProto, name: str, default: _T) -> _T:
    """An attribute of a node, of the type of ``default``: a number, bytes, or a list."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
