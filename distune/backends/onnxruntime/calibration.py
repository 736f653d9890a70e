"""One sweep over calibration batches through the fp32 graph.

Only statistics are kept. Memory is bounded by the activations of one batch, all of them alive at once (choose the
calibration batch size accordingly), plus what ``backends.statistics`` states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray

from distune.backends.base import Feed
from distune.backends.onnxruntime.capability import activation_inputs, activation_outputs
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.session import create_session
from distune.backends.recipes.variants import LayerCollector
from distune.backends.statistics import CalibrationStatistics
from distune.space.capability import Capability


def calibrated_tensors(model: PreparedModel, capability: Capability) -> tuple[str, ...]:
    """The activations that some op that can be static reads or writes, in graph order."""
    names: dict[str, None] = {}
    for op in capability.ops:
        if all(option.mode != "static" for option in op.options):
            continue
        node = model.index.nodes[op.name]
        names.update(dict.fromkeys((*activation_inputs(model.index, node), *activation_outputs(model.index, node))))
    return tuple(names)


def with_outputs(proto: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model that has ``tensors`` as outputs too."""
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    present = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    for name in tensors:
        if name not in present:
            out.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return out


def collect(
    model: PreparedModel,
    tensors: tuple[str, ...],
    batches: Iterable[tuple[int, Feed]],
    layers: LayerCollector | None = None,
    at_once: int | None = None,
) -> CalibrationStatistics:
    """Statistics of ``tensors`` over ``(batch number, feed)`` pairs.

    One thread is used, so that the values do not depend on how many there are.

    Args:
        layers: Collects what recipes need of the inputs of layers too.
        at_once: Tensors at most that one run of the model gives, so that only those are in memory; a batch is then run
            several times. All of them where it is ``None``.
    """
    statistics = CalibrationStatistics()
    ranged = set(tensors)
    wanted = dict.fromkeys((*tensors, *(layers.tensors if layers is not None else ())))
    inputs = [name for name in wanted if name in set(model.index.inputs)]
    outputs = [name for name in wanted if name not in inputs]
    size = at_once or max(len(outputs), 1)
    parts = [outputs[start : start + size] for start in range(0, len(outputs), size)] or [[]]
    sessions = [create_session(with_outputs(model.proto, part)) for part in parts if part]
    for number, feed in batches:
        for part, session in zip(parts, sessions, strict=False):
            values = dict(zip(part, session.run(part, dict(feed)), strict=True))
            _count(statistics, number, values, ranged, layers)
        _count(statistics, number, {name: feed[name] for name in inputs}, ranged, layers)
    return statistics


def _count(
    statistics: CalibrationStatistics,
    number: int,
    values: Mapping[str, NDArray[Any]],
    ranged: set[str],
    layers: LayerCollector | None,
) -> None:
    statistics.add(number, {name: value for name, value in values.items() if name in ranged})
    if layers is not None:
        layers.add(statistics, values)
