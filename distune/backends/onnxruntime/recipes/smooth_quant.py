"""SmoothQuant of an ONNX graph: what can be smoothed, and where the division goes.

The division is folded into the LayerNormalization or the layer before where nobody else reads the tensor, else it is a
Mul.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames, attribute
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.recipes.layers import OnnxLayer, constant, layer_of, layers, set_constant
from distune.backends.onnxruntime.weights import add_constant
from distune.backends.recipes.smoothing import Factors, Smoothable


def smoothable(model: PreparedModel) -> tuple[Smoothable, ...]:
    """The activations before Gemm and MatMul layers, in graph order."""
    by_tensor: dict[str, list[OnnxLayer]] = {}
    for layer in layers(model):
        if not layer.is_conv and model.index.only_consumer(layer.weight) is not None:
            by_tensor.setdefault(layer.input, []).append(layer)
    return tuple(
        Smoothable(
            tensor,
            tuple(members),
            tensor not in model.index.outputs and len(model.index.consumers[tensor]) == len(members),
        )
        for tensor, members in by_tensor.items()
    )


def smooth(model: PreparedModel, found: Factors, folding: bool = True) -> onnx.ModelProto:
    """A copy of the model in which the given activations are divided by their factors and the weights make up for it.

    Args:
        folding: Put the division into what comes before where that can be; otherwise always a Mul.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    nodes = {node.name: node for node in proto.graph.node}
    unused = UnusedNames(proto)
    changed: dict[str, NDArray[np.float32]] = {}

    def value(name: str) -> NDArray[np.float32]:
        return changed[name] if name in changed else constant(model.index, name)

    inserted: dict[str, onnx.NodeProto] = {}
    for spot in smoothable(model):
        s = found.get(spot.tensor)
        if s is None:
            continue
        for layer in spot.members:
            changed[layer.weight] = layer.scale_inputs(value(layer.weight), s)
        constants = list(_foldable(model.index, spot, len(s))) if folding and spot.alone else []
        for name, divide in constants:
            changed[name] = divide(value(name), s)
        if not constants:
            inserted[spot.tensor] = _insert_mul(proto, model, spot, s, nodes, unused)
    for name, values in changed.items():
        set_constant(proto, name, values)
    _place(proto, inserted)
    return proto


class _Divide:
    """Divides the outputs of a layer, or a vector, by the factors."""

    def __init__(self, layer: OnnxLayer | None = None) -> None:
        self._layer = layer

    def __call__(self, values: NDArray[np.float32], s: NDArray[np.float32]) -> NDArray[np.float32]:
        return values / s if self._layer is None else self._layer.scale_outputs(values, 1 / s)


def _foldable(index: GraphIndex, spot: Smoothable, channels: int) -> Iterator[tuple[str, _Divide]]:
    """The constants that make the tensor, each with how it is divided; none where it cannot be folded."""
    producer = index.producer.get(spot.tensor)
    if producer is not None and producer.op_type == "Relu":
        before = producer.input[0]
        producer = index.producer.get(before) if index.only_consumer(before) is producer else None
    if producer is None:
        return
    if producer.op_type == "LayerNormalization" and producer.output[0] == spot.tensor:
        names = [name for name in producer.input[1:3] if name]
        axis = attribute(producer, "axis", -1)
        if axis == -1 and all(_own_vector(index, name, channels) for name in names):
            yield from ((name, _Divide()) for name in names)
        return
    for layer in _before(index, producer):
        names = [name for name in (layer.weight, layer.bias) if name]
        if any(index.only_consumer(name) is None for name in names):
            return
        yield layer.weight, _Divide(layer)
        if layer.bias:
            yield layer.bias, _Divide()


def _before(index: GraphIndex, node: onnx.NodeProto) -> Iterator[OnnxLayer]:
    """The Gemm, or the MatMul with or without Add, whose output ``node`` makes."""
    if node.op_type == "Add":
        made = [index.producer[name] for name in node.input if name in index.producer]
        if len(made) != 1 or made[0].op_type != "MatMul":
            return
        layer = layer_of(index, made[0])
        if layer is not None and layer.output == node.output[0]:
            yield layer
    elif node.op_type in ("Gemm", "MatMul"):
        layer = layer_of(index, node)
        if layer is not None and layer.output == node.output[0] and not layer.adds_computed:
            yield layer


def _own_vector(index: GraphIndex, name: str, channels: int) -> bool:
    tensor = index.initializers.get(name)
    return tensor is not None and list(tensor.dims) == [channels] and index.only_consumer(name) is not None


def _insert_mul(
    proto: onnx.ModelProto,
    model: PreparedModel,
    spot: Smoothable,
    s: NDArray[np.float32],
    nodes: Mapping[str, onnx.NodeProto],
    unused: UnusedNames,
) -> onnx.NodeProto:
    smoothed = unused(f"{spot.tensor}_smoothed")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.index.element_type[spot.tensor])
    inverse = add_constant(proto, unused(f"{spot.tensor}_smooth_scale"), (1 / s).astype(dtype))
    for layer in spot.members:
        node = nodes[layer.name]
        node.input[list(node.input).index(spot.tensor)] = smoothed
    info = proto.graph.value_info.add()
    known = {value.name: value for value in (*proto.graph.value_info, *proto.graph.input)}
    if spot.tensor in known:
        info.CopyFrom(known[spot.tensor])
    info.name = smoothed
    info.type.tensor_type.elem_type = model.index.element_type[spot.tensor]
    return onnx.helper.make_node("Mul", [spot.tensor, inverse], [smoothed], unused(f"{smoothed}/Mul"))


def _place(proto: onnx.ModelProto, inserted: Mapping[str, onnx.NodeProto]) -> None:
    """Put each new node behind what makes its input."""
    if not inserted:
        return
    made = {name for node in proto.graph.node for name in node.output}
    nodes = [node for tensor, node in inserted.items() if tensor not in made]
    for node in proto.graph.node:
        nodes.append(node)
        nodes += [inserted[name] for name in node.output if name in inserted]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


__all__ = ["smooth", "smoothable"]
