"""Weight-only quantization of MatMul and Gemm: what is offered, what is calibrated, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from distune.backends.base import Feed
from distune.backends.onnxruntime.calibration import with_outputs
from distune.backends.onnxruntime.folding import fold_into_normalization
from distune.backends.onnxruntime.graph import GraphIndex, UnusedNames, attribute, has_factors
from distune.backends.onnxruntime.matmul_nbits import ACCURACY_LEVELS, DOMAIN, native_bits, node, runs, stored
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.session import create_session
from distune.backends.onnxruntime.shared import values_of
from distune.backends.onnxruntime.storage import weight_bytes
from distune.backends.onnxruntime.weights import add_constant, drop_unused_constants
from distune.backends.statistics import CalibrationStatistics
from distune.backends.weight_only.grouped import BITS, GroupedWeight
from distune.backends.weight_only.quantize import SETTINGS_RECIPES
from distune.backends.weight_only.quantizer import (
    STORAGE,
    WeightOnlyQuantizer,
    check_recipes,
    settings_recipes,
    tensor_options,
)
from distune.errors import ModelError, TrialError
from distune.space.capability import Capability, OpInfo, Recipe
from distune.space.op_config import FP32, OpConfig

STORAGES = ("native", "wider", "dequantized")
"""What becomes of widths that ``MatMulNBits`` does not run (recipe ``STORAGE``).

``native``: they are not offered. ``wider``: kept in the next width that runs. ``dequantized``: kept as fp32."""

ACCURACY_LEVEL = "accuracy_level"
"""Recipe: the attribute of ``MatMulNBits`` with that name."""

WEIGHT_ONLY_RECIPES = frozenset({*SETTINGS_RECIPES, STORAGE, ACCURACY_LEVEL})
"""Recipes that approach weight_only alone has."""

_OPSET_OF_DOMAIN = 1
_DEFAULT_BITS = (4, 8, 2)


def weight_only_capability(
    model: PreparedModel, capability: Capability, recipes: Mapping[str, Any], calibrated: bool
) -> Capability:
    """What ``capability`` is under approach ``weight_only``: MatMul and Gemm with a constant weight, each by itself.

    Args:
        recipes: Those that the user fixed.
        calibrated: There are calibration data; without them GPTQ and AWQ are not offered.

    Raises:
        ModelError: A recipe of the user has a value that it does not take.
    """
    _check(recipes)
    options = (*_options(recipes.get(STORAGE, "native"), calibrated), FP32)
    ops: list[OpInfo] = []
    excluded: list[tuple[str, str, str]] = []
    reasons = {name: (op_type, reason) for name, op_type, reason in capability.excluded}
    known = {op.name for op in capability.ops}
    for graph_node in model.proto.graph.node:
        name, op_type = graph_node.name, graph_node.op_type
        if weight_of(model.index, graph_node) is not None:
            ops.append(OpInfo(name, op_type, options, name, has_weight=True))
        elif name in known or name in reasons:
            excluded.append((name, op_type, "weight-only quantization is for MatMul and Gemm with a constant weight"))
    names = {op.name for op in ops}
    blocks = tuple(kept for block in capability.blocks if (kept := tuple(name for name in block if name in names)))
    kept_recipes = tuple(recipe for recipe in capability.recipes if set(recipe.fp32_ops) & names)
    return Capability(tuple(ops), (*kept_recipes, *_recipes()), tuple(excluded), blocks)


def weight_of(index: GraphIndex, graph_node: onnx.NodeProto) -> str | None:
    """Name of the constant fp32 matrix of a MatMul or of a plain Gemm; ``None`` where there is none."""
    if graph_node.op_type not in ("MatMul", "Gemm") or graph_node.domain not in ("", "ai.onnx"):
        return None
    name = graph_node.input[1]
    tensor = index.initializers.get(name)
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT or 0 in tensor.dims:
        return None
    if graph_node.input[0] in index.initializers:
        return None
    return None if has_factors(graph_node) or attribute(graph_node, "transA", 0) else name


def calibrated_inputs(model: PreparedModel, capability: Capability) -> tuple[str, ...]:
    """Inputs of the ops that GPTQ or AWQ may quantize, in graph order."""
    wanted = (op for op in capability.ops if any(option.needs_calibration for option in op.options))
    return tuple(dict.fromkeys(model.index.nodes[op.name].input[0] for op in wanted))


def collect_moments(
    model: PreparedModel, tensors: tuple[str, ...], batches: Iterable[tuple[int, Feed]]
) -> CalibrationStatistics:
    """``X^T X`` of ``tensors`` over ``(batch number, feed)`` pairs; memory as in ``backends.second_moments``."""
    statistics = CalibrationStatistics()
    inputs = set(model.index.inputs) & set(tensors)
    outputs = [name for name in tensors if name not in inputs]
    session = create_session(with_outputs(model.proto, outputs))
    for _, feed in batches:
        values = dict(zip(outputs, session.run(outputs, dict(feed)), strict=True)) if outputs else {}
        statistics.add_moments({**values, **{name: feed[name] for name in inputs}})
    return statistics


class WeightOnlyWriter(WeightOnlyQuantizer):
    """Quantizes weights of one model and writes weight-only ops into its graphs."""

    def __init__(self, model: PreparedModel) -> None:
        self._model = model
        super().__init__(weight_bytes(model.proto))

    def write(
        self, proto: onnx.ModelProto, weights: Mapping[str, GroupedWeight], recipes: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Replace ops of ``proto`` by quantized ones, in place.

        Args:
            weights: By op name.
            recipes: Of the tuning config.

        Returns:
            Warnings for the user: which ops are not stored in the width that was asked for.

        Raises:
            TrialError: ``MatMulNBits`` cannot hold a weight.
        """
        if not weights:
            return ()
        level = int(recipes.get(ACCURACY_LEVEL) or 0)
        storage = recipes.get(STORAGE, "native")
        stood_in: dict[str, list[str]] = {}
        scaled: list[str] = []
        unused = UnusedNames(proto)
        nodes: list[onnx.NodeProto] = []
        for graph_node in proto.graph.node:
            weight = weights.get(graph_node.name)
            if weight is None:
                nodes.append(graph_node)
                continue
            if weight.format.bits in native_bits():
                made = _as_nbits(proto, graph_node, weight, level, unused)
            elif storage == "wider":
                made = _as_nbits(proto, graph_node, weight, level, unused)
                stood_in.setdefault(f"{weight.format.bits}-bit weights stored in wider integers", []).append(
                    graph_node.name
                )
            elif storage == "dequantized":
                made = _as_fp32(proto, graph_node, weight, unused)
                stood_in.setdefault(
                    f"{weight.format.bits}-bit weights stored dequantized, as fp32: no bytes are saved", []
                ).append(graph_node.name)
            else:
                raise TrialError(
                    f"op {graph_node.name!r}: MatMulNBits does not run {weight.format.bits} bits but "
                    f"{', '.join(map(str, native_bits()))}; recipe {STORAGE} (wider or dequantized) stores others"
                )
            nodes.extend(made)
            scaled += [new.name for new in made if new.op_type == "Mul"]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        fold_into_normalization(proto, scaled)
        drop_unused_constants(proto)
        if all(entry.domain != DOMAIN for entry in proto.opset_import):
            proto.opset_import.append(helper.make_opsetid(DOMAIN, _OPSET_OF_DOMAIN))
        return tuple(f"{what}: {', '.join(names)}" for what, names in stood_in.items())

    def _op_type(self, name: str) -> str | None:
        graph_node = self._model.index.nodes.get(name)
        return None if graph_node is None else str(graph_node.op_type)

    def _is_quantizable(self, name: str) -> bool:
        return weight_of(self._model.index, self._model.index.nodes[name]) is not None

    def _weight_name(self, name: str) -> str:
        return str(self._model.index.nodes[name].input[1])

    def _input(self, name: str) -> str:
        return str(self._model.index.nodes[name].input[0])

    def _weight(self, name: str) -> NDArray[np.float32]:
        graph_node = self._model.index.nodes[name]
        values = values_of(self._model.index.initializers[graph_node.input[1]])
        return np.asarray(values.T if _is_transposed(graph_node) else values, np.float32)


def _options(storage: str, calibrated: bool) -> Iterator[OpConfig]:
    native = native_bits()
    widths = [bits for bits in _DEFAULT_BITS if bits in native]
    if storage != "native":
        widths += [bits for bits in reversed(BITS) if bits not in native]
    for tensor in tensor_options(widths, calibrated):
        if tensor.algorithm != "HQQ" or _runs_real_zero_points(tensor.bits, storage):
            yield OpConfig("weight_only", None, tensor)


def _runs_real_zero_points(bits: int, storage: str) -> bool:
    if bits in native_bits() or storage == "wider":
        return any(wider >= bits for wider in native_bits("real"))
    return True


def _recipes() -> Iterator[Recipe]:
    yield from settings_recipes()
    yield Recipe(STORAGE, "native", ("native",))
    levels = tuple(level for level in (0, 4) if runs(4, 32, "none", level))
    yield Recipe(ACCURACY_LEVEL, 0, levels, speeds_up=len(levels) > 1)


def _check(recipes: Mapping[str, Any]) -> None:
    check_recipes(recipes, STORAGES)
    level = recipes.get(ACCURACY_LEVEL, 0)
    if level not in ACCURACY_LEVELS or isinstance(level, bool) or not runs(4, 32, "none", level):
        raise ModelError(f"recipe {ACCURACY_LEVEL} is a level that MatMulNBits runs, 0 to 4, not {level!r}")


def _as_nbits(
    proto: onnx.ModelProto, graph_node: onnx.NodeProto, weight: GroupedWeight, level: int, unused: UnusedNames
) -> list[onnx.NodeProto]:
    name, output = graph_node.name, graph_node.output[0]
    made: list[onnx.NodeProto] = []
    source = graph_node.input[0]
    if weight.input_scale is not None:
        inverse = (1.0 / weight.input_scale).astype(np.float32)
        factors = [source, add_constant(proto, unused(f"{name}_input_scale"), inverse)]
        source = unused(f"{name}_scaled_input")
        made.append(helper.make_node("Mul", factors, [source], unused(f"{name}_scale")))
    bias = graph_node.input[2] if graph_node.op_type == "Gemm" and len(graph_node.input) > 2 else ""
    product_name = unused(f"{name}_product") if bias else output
    matmul, tensors = node(stored(weight), name, source, product_name, f"{name}_weight", level)
    for position, tensor in enumerate(tensors, 1):
        tensor.name = matmul.input[position] = unused(tensor.name)
    proto.graph.initializer.extend(tensors)
    made.append(matmul)
    if bias:
        made.append(helper.make_node("Add", [product_name, bias], [output], unused(f"{name}_bias")))
    return made


def _as_fp32(
    proto: onnx.ModelProto, graph_node: onnx.NodeProto, weight: GroupedWeight, unused: UnusedNames
) -> list[onnx.NodeProto]:
    values = weight.effective()
    kept = values.T if _is_transposed(graph_node) else values
    changed = onnx.NodeProto()
    changed.CopyFrom(graph_node)
    changed.input[1] = add_constant(proto, unused(f"{graph_node.name}_dequantized"), kept)
    return [changed]


def _is_transposed(graph_node: onnx.NodeProto) -> bool:
    return bool(attribute(graph_node, "transB", 0))


__all__ = [
    "ACCURACY_LEVEL",
    "STORAGES",
    "WEIGHT_ONLY_RECIPES",
    "WeightOnlyWriter",
    "calibrated_inputs",
    "collect_moments",
    "weight_of",
    "weight_only_capability",
]
