"""A model in fp16 as the same model in fp32, which is what is calibrated and quantized.

ONNX Runtime's CPU provider computes in fp32 what a model says in fp16, weight by weight behind a Cast, so the numbers
are those of what it runs. Inputs and outputs of the model stay in fp16.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from distune.backends.onnxruntime.graph import UnusedNames
from distune.backends.onnxruntime.shared import values_of

_TYPE_ATTRIBUTES = frozenset({"to", "dtype"})
"""Attributes that say an element type, of Cast and of ops that make tensors of nothing."""


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with all its tensors of type float16 in float32, or itself where there is none.

    Nodes and tensors keep their names, but for the tensors behind inputs and before outputs in fp16.
    """
    if not _holds_half(model.graph):
        return model
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    unused = UnusedNames(model)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name for value in graph.input if _is_half(value) and value.name not in constants}
    outputs = {value.name for value in graph.output if _is_half(value)} - inputs
    interface = [*model.graph.input, *model.graph.output]
    names = {name: unused(f"{name}_fp32") for name in sorted(inputs | outputs)}
    _widen(graph)
    _rename(graph, names)
    for value, own in zip((*graph.input, *graph.output), interface, strict=True):
        if value.name in names:
            value.CopyFrom(own)
    before = [
        helper.make_node("Cast", [n], [names[n]], unused(f"{n}_widen"), to=TensorProto.FLOAT) for n in sorted(inputs)
    ]
    after = [
        helper.make_node("Cast", [names[n]], [n], unused(f"{n}_narrow"), to=TensorProto.FLOAT16)
        for n in sorted(outputs)
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for function in wide.functions:
        for node in function.node:
            _widen_attributes(node)
    return wide


def _holds_half(graph: onnx.GraphProto) -> bool:
    """Whether a weight, an input or an output is in fp16: what is only cast to it in passing stays as it is."""
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer) or any(
        map(_is_half, (*graph.input, *graph.output))
    )


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _widen(graph: onnx.GraphProto) -> None:
    """Turn all that says float16 to float32, in the graphs inside as well."""
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    for value in (*graph.value_info, *graph.input, *graph.output):
        if _is_half(value):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        _widen_attributes(node)


def _widen_attributes(node: onnx.NodeProto) -> None:
    for item in node.attribute:
        if item.type == AttributeProto.INT and item.name in _TYPE_ATTRIBUTES and item.i == TensorProto.FLOAT16:
            item.i = TensorProto.FLOAT
        if item.type == AttributeProto.TENSOR:
            _widen_tensor(item.t)
        if item.type == AttributeProto.GRAPH:
            _widen(item.g)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(values_of(tensor).astype(np.float32), tensor.name))


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names wherever they are made or read; inputs and outputs of ``graph`` stay."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
        for item in node.attribute:
            if item.type == AttributeProto.GRAPH:
                _rename(item.g, names)
                for value in item.g.output:
                    value.name = names.get(value.name, value.name)
