"""One sweep over calibration batches through the fp32 graph.

Only statistics are kept, and of one tensor where several have the same range (see ``measured_at``). Memory is bounded
by the activations of one batch, all of them alive at once (choose the calibration batch size accordingly), plus what
``backends.statistics`` states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray

from distune.backends.base import Feed
from distune.backends.onnxruntime.capability import activation_inputs, activation_outputs
from distune.backends.onnxruntime.graph import GraphIndex
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.session import create_session
from distune.backends.recipes.variants import LayerCollector
from distune.backends.statistics import CalibrationStatistics
from distune.space.capability import Capability

_SAME_VALUES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_CUTS_OFF = frozenset({"Clip", "Relu"})


def calibrated_tensors(model: PreparedModel, capability: Capability) -> tuple[str, ...]:
    """What is measured for the activations that some op that can be static reads or writes, in graph order."""
    names: dict[str, None] = {}
    for op in capability.ops:
        if all(option.mode != "static" for option in op.options):
            continue
        node = model.index.nodes[op.name]
        activations = (*activation_inputs(model.index, node), *activation_outputs(model.index, node))
        names.update(dict.fromkeys(measured_at(model.index, name) for name in activations))
    return tuple(names)


def measured_at(index: GraphIndex, tensor: str) -> str:
    """The tensor whose statistics give the range of ``tensor``.

    A tensor that only ``Relu`` or ``Clip`` reads has their output's: what they cut off needs no integers of its own.
    One that other values were only moved into has theirs.
    """
    reader = index.only_consumer(tensor)
    while reader is not None and reader.op_type in _CUTS_OFF and reader.input[0] == tensor:
        tensor = reader.output[0]
        reader = index.only_consumer(tensor)
    maker = index.producer.get(tensor)
    while maker is not None and maker.op_type in _SAME_VALUES and index.is_float(maker.input[0]):
        tensor = maker.input[0]
        maker = index.producer.get(tensor)
    return tensor


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
    statistics: CalibrationStatistics,
    layers: LayerCollector | None = None,
    at_once: int | None = None,
) -> None:
    """Count the values of ``tensors`` over ``(batch number, feed)`` pairs.

    One thread is used, so that the values do not depend on how many there are.

    Args:
        statistics: What they are counted in.
        layers: Collects what recipes need of the inputs of layers too.
        at_once: Tensors at most that one run of the model gives, so that only those are in memory; a batch is then run
            several times. All of them where it is ``None``.
    """
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
