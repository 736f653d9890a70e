"""What is done to the user's graph once, before anything is quantized.

ONNX Runtime's basic optimisations fold BatchNorm and constants and remove what has no effect (the same that its
``quant_pre_process`` does), shape inference gives every tensor a type, and ``simplify`` does what else helps. The nodes
of the outcome carry the names that the user's model gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, NotImplemented

from distune.backends.onnxruntime.folding import fold_gemm_factors
from distune.backends.onnxruntime.full_forms import write_out
from distune.backends.onnxruntime.graph import FLOAT_TYPES, WEIGHTED, GraphIndex
from distune.backends.onnxruntime.recipes.preparation import Preparation, gemm_to_matmul
from distune.backends.onnxruntime.session import optimized_model
from distune.backends.onnxruntime.shared import LightModel
from distune.backends.onnxruntime.simplify import has_row_bias, simplify, vector_biases
from distune.backends.onnxruntime.storage import infer_shapes
from distune.backends.onnxruntime.widening import widened
from distune.errors import ModelError

_DEFAULT = Preparation()

_INFERRED = ("onnx.infer", "onnxruntime.quant")
"""Metadata by which ONNX Runtime's quantizer knows that shapes are inferred already."""


@dataclass(frozen=True)
class PreparedModel:
    """The graph that is calibrated and quantized.

    Attributes:
        proto: Never changed after preparation.
        index: Its lookups.
        user_types: Op type in the user's model of the op that a node stands for, by node name; a node that is only
            part of what the user wrote (ONNX Runtime runs HardSwish as HardSigmoid and Mul) is recognised by it.
        weights: Keeps the files in which ``proto`` has its larger weights; read them by ``shared.values_of``.
    """

    proto: onnx.ModelProto
    index: GraphIndex
    user_types: dict[str, str]
    weights: LightModel

    @classmethod
    def of(cls, proto: onnx.ModelProto, user_types: dict[str, str]) -> PreparedModel:
        """``proto`` with its larger weights in files that the ranks of a node share."""
        light = LightModel(proto, shared=True)
        return cls(light.proto, GraphIndex(light.proto), user_types, light)


def prepare(model: onnx.ModelProto, how: Preparation = _DEFAULT) -> PreparedModel:
    """Simplify ``model``, in fp32 where it is in fp16, and infer shapes.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    model = widened(model)
    try:
        light = optimized_model(model, f"ORT_{how.level}", how.disabled_optimizers)
        if _has_made_residual_gemm(model, light.proto):
            disabled = (*how.disabled_optimizers, "MatMulAddFusion")
            light = optimized_model(model, f"ORT_{how.level}", disabled)
    except (Fail, InvalidArgument, InvalidGraph, NotImplemented) as error:
        raise ModelError(f"ONNX Runtime cannot load the model: {error}") from error
    prepared = light.proto
    _fill_sparse_constants(prepared)
    user_types = _restore_names(model, prepared)
    _drop_unused_domains(prepared)
    _restore_interface(model, prepared)
    fold_gemm_factors(prepared)
    vector_biases(prepared, user_types)
    if how.gemm_to_matmul:
        gemm_to_matmul(prepared, user_types)
    prepared = infer_shapes(prepared)
    write_out(prepared)
    simplify(prepared, user_types)
    _complete_types(prepared)
    _mark_inferred(prepared)
    return PreparedModel.of(prepared, user_types)


def _fill_sparse_constants(model: onnx.ModelProto) -> None:
    """Give sparse constants their zeros, as ONNX Runtime does when it loads a model."""
    for sparse in model.graph.sparse_initializer:
        values, indices = (numpy_helper.to_array(tensor) for tensor in (sparse.values, sparse.indices))
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:  # into the elements in their order
            dense.ravel()[indices] = values
        else:
            dense[tuple(indices.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del model.graph.sparse_initializer[:]


def _has_made_residual_gemm(user: onnx.ModelProto, prepared: onnx.ModelProto) -> bool:
    """Whether the optimiser joined a MatMul and the Add of a computed tensor, or of a constant by row, into a Gemm.

    Such a Gemm has no integer kernel (QGemm wants a constant vector as bias), where MatMul and Add each have one.
    """
    own = {node.name for node in user.graph.node if node.op_type == "Gemm"}
    index = GraphIndex(prepared)
    return any(
        node.op_type == "Gemm"
        and node.name not in own
        and len(node.input) > 2
        and node.input[2]
        and (not index.is_constant(node.input[2]) or has_row_bias(index.initializers.get(node.input[2])))
        for node in prepared.graph.node
    )


def _restore_names(user: onnx.ModelProto, prepared: onnx.ModelProto) -> dict[str, str]:
    """Name nodes that the optimiser made after the user's op that they replace; returns the user's op types."""
    index = GraphIndex(user)
    types = {node.name: node.op_type for node in user.graph.node}
    taken = {node.name for node in prepared.graph.node if node.name in types}
    for position, node in enumerate(prepared.graph.node):
        if node.name in types:
            continue
        origin = next((_origin(index, name, node.op_type, taken) for name in node.output if name in index.producer), "")
        name = origin or f"{node.op_type}_{position}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
        types.setdefault(name, "")
    return types


def _origin(index: GraphIndex, tensor: str, op_type: str, taken: set[str]) -> str:
    """The user's op behind a new node: the weighted op of a fused chain, else the op that made the output."""
    last = node = index.producer[tensor]
    for _ in range(4):
        if node.name not in taken and (node.op_type == op_type or (node.op_type in WEIGHTED and op_type in WEIGHTED)):
            return str(node.name)
        previous = [index.producer[name] for name in node.input if name in index.producer]
        if len(previous) != 1:
            break
        node = previous[0]
    return str(last.name) if last.name not in taken else ""


def _complete_types(model: onnx.ModelProto) -> None:
    """Give a type to what ONNX's inference has none for: ONNX Runtime's own ops, and all that follows one.

    What inference leaves open there has the type of the floating-point tensors that go in (ops that change the type,
    such as Cast, are known to it).
    """
    index = GraphIndex(model)
    known = index.element_type
    written = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        if not node.output or known.get(node.output[0]):
            continue
        types = [known[name] for name in node.input if known.get(name) in FLOAT_TYPES]
        if not types:
            continue
        known[node.output[0]] = types[0]
        if node.output[0] in written:
            written[node.output[0]].type.tensor_type.elem_type = types[0]
        else:
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], types[0], None))


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """The optimiser imports every domain it knows; a model needs only those of its nodes."""
    used = {node.domain for node in model.graph.node} | {function.domain for function in model.functions} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _restore_interface(user: onnx.ModelProto, prepared: onnx.ModelProto) -> None:
    """Keep the user's inputs and outputs (names of dimensions, documentation) and metadata as they were."""
    constants = {tensor.name for tensor in user.graph.initializer}
    del prepared.graph.input[:]
    prepared.graph.input.extend(value for value in user.graph.input if value.name not in constants)
    del prepared.graph.output[:]
    prepared.graph.output.extend(user.graph.output)
    del prepared.metadata_props[:]
    prepared.metadata_props.extend(user.metadata_props)
    prepared.producer_name = user.producer_name


def _mark_inferred(model: onnx.ModelProto) -> None:
    key, value = _INFERRED
    if all(entry.key != key for entry in model.metadata_props):
        model.metadata_props.add(key=key, value=value)
