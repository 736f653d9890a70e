"""One sweep over calibration batches through the fp32 graph.

Only statistics are kept. Memory is bounded by the activations of one batch, all of them alive at once (choose the
calibration batch size accordingly), plus what ``backends.statistics`` states.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from distune.backends.base import Feed
from distune.backends.onnxruntime.capability import activation_inputs, activation_outputs
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.session import create_session
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
    model: PreparedModel, tensors: tuple[str, ...], batches: Iterable[tuple[int, Feed]]
) -> CalibrationStatistics:
    """Statistics of ``tensors`` over ``(batch number, feed)`` pairs.

    One thread is used, so that the values do not depend on how many there are.
    """
    statistics = CalibrationStatistics()
    inputs = set(model.index.inputs) & set(tensors)
    outputs = [name for name in tensors if name not in inputs]
    session = create_session(with_outputs(model.proto, outputs).SerializeToString())
    for number, feed in batches:
        values = dict(zip(outputs, session.run(outputs, dict(feed)), strict=True))
        statistics.add(number, {**values, **{name: feed[name] for name in inputs}})
    return statistics
