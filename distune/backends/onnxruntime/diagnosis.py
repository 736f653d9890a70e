"""Tensors of chosen ops in fp32 and in the quantized model, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from distune.backends.base import Feed
from distune.backends.diagnosis import TensorComparison
from distune.backends.onnxruntime.calibration import with_outputs
from distune.backends.onnxruntime.capability import activation_outputs
from distune.backends.onnxruntime.graph import attribute
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.session import create_session
from distune.backends.onnxruntime.shared import values_of

_AT_ONCE = 8
"""Ops whose tensors one run of the model gives, so that only those are in memory."""


def diagnose(
    model: PreparedModel,
    quantized: onnx.ModelProto,
    ops: Mapping[str, str],
    feeds: Sequence[Feed],
    kind: str,
) -> dict[str, dict[str, Any]]:
    """``{op: {"activation": ..., "weight": ...}}`` in the form of ``TensorComparison.result``.

    The activation of an op is its output; where the quantized graph has none, since the op is fused with what follows,
    it is what leaves its group. A weight is there where the quantized graph dequantizes it.

    Args:
        ops: The last op of the group, by op name in ``model``.
        kind: ``activation``, ``weight`` or ``all``.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in ops}
    if kind in ("all", "activation"):
        names = list(ops)
        for start in range(0, len(names), _AT_ONCE):
            some = {name: ops[name] for name in names[start : start + _AT_ONCE]}
            for name, result in _activations(model, quantized, some, feeds).items():
                found[name]["activation"] = result
    if kind in ("all", "weight"):
        for name in ops:
            weights = _weights(model, quantized, name)
            if weights is not None:
                comparison = TensorComparison()
                comparison.see_range(*weights)
                comparison.count(*weights)
                found[name]["weight"] = comparison.result()
    return found


def _activations(
    model: PreparedModel, quantized: onnx.ModelProto, ops: Mapping[str, str], feeds: Sequence[Feed]
) -> dict[str, dict[str, Any]]:
    made = {name for node in quantized.graph.node for name in node.output}
    made |= {value.name for value in quantized.graph.output}
    pairs: dict[str, tuple[str, str]] = {}
    for name, last in ops.items():
        tensors = [(activation_outputs(model.index, model.index.nodes[op]) or [""])[0] for op in (name, last)]
        ways = [(tensor, actual) for tensor in tensors for actual in (f"{tensor}_DequantizeLinear_Output", tensor)]
        found = next(((tensor, actual) for tensor, actual in ways if tensor and actual in made), None)
        if found is not None:
            pairs[name] = found
    if not pairs:
        return {}
    expected_of = _Reader(model.proto, [tensor for tensor, _ in pairs.values()])
    actual_of = _Reader(quantized, [actual for _, actual in pairs.values()])
    comparisons = {name: TensorComparison() for name in pairs}
    for step in ("see_range", "count"):
        for feed in feeds:
            expected, actual = expected_of.read(feed), actual_of.read(feed)
            for name, (tensor, other) in pairs.items():
                getattr(comparisons[name], step)(expected[tensor], actual[other])
    return {name: comparison.result() for name, comparison in comparisons.items()}


class _Reader:
    """Gives tensors of a model by name."""

    def __init__(self, proto: onnx.ModelProto, tensors: Sequence[str]) -> None:
        self._names = list(dict.fromkeys(tensors))
        self._session = create_session(with_outputs(proto, self._names))

    def read(self, feed: Feed) -> dict[str, NDArray[Any]]:
        return dict(zip(self._names, self._session.run(self._names, dict(feed)), strict=True))


def _weights(
    model: PreparedModel, quantized: onnx.ModelProto, name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """A weight in fp32, and as the quantized graph dequantizes it."""
    node = next((node for node in quantized.graph.node if node.name == name), None)
    if node is None:
        return None
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    originals = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    makers = {output: each for each in quantized.graph.node for output in each.output}
    for source, tensor in zip(model.index.nodes[name].input[1:2], node.input[1:2], strict=False):
        maker = makers.get(tensor)
        if maker is None or maker.op_type != "DequantizeLinear" or source not in originals:
            continue
        if not all(each in constants for each in maker.input if each):
            continue
        values, scale, *rest = (values_of(constants[each]) for each in maker.input if each)
        axis = attribute(maker, "axis", 1)
        zero_point = rest[0] if rest else np.zeros_like(scale, np.int32)
        shape = [-1 if index == axis % values.ndim else 1 for index in range(values.ndim)] if scale.ndim else []
        dequantized = (values.astype(np.float32) - zero_point.astype(np.float32).reshape(shape)) * scale.reshape(shape)
        return values_of(originals[source]).ravel(), dequantized.astype(np.float32).ravel()
    return None


__all__ = ["diagnose"]
