"""Questions about single ops that cost no trial: how much error each one brings.

Both work on groups, the units that fall back together, and score a group by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from distune.backends import sensitivity
from distune.backends.base import Feed, Outputs
from distune.backends.onnxruntime.calibration import with_outputs
from distune.backends.onnxruntime.capability import activation_outputs
from distune.backends.onnxruntime.preprocess import PreparedModel
from distune.backends.onnxruntime.session import create_session
from distune.backends.sensitivity import squares
from distune.space.capability import Capability
from distune.space.op_config import TuningConfig


def op_mse(
    model: PreparedModel,
    capability: Capability,
    quantized: onnx.ModelProto,
    groups: Sequence[str],
    feeds: Sequence[Feed],
) -> dict[str, float]:
    """Mean squared error of each group's output in the quantized model against the fp32 one, divided by the power of
    the fp32 output; all groups in one pass over ``feeds``.

    The output of a group is what leaves it last. Where it is quantized, its dequantized value is compared.
    """
    last = {op.group: op.name for op in capability.ops}
    outputs = {group: (activation_outputs(model.index, model.index.nodes[last[group]]) or [""])[0] for group in groups}
    tensors = {group: name for group, name in outputs.items() if name}
    readable = _dequantized_names(quantized, tensors.values())
    reference = _Runner(model.proto, list(tensors.values()))
    candidate = _Runner(quantized, [readable[name] for name in tensors.values()])
    error = dict.fromkeys(tensors, 0.0)
    power = dict.fromkeys(tensors, 0.0)
    for feed in feeds:
        expected, actual = reference.run(feed), candidate.run(feed)
        for group, name in tensors.items():
            difference, squared = squares(expected[name], actual[readable[name]])
            error[group] += difference
            power[group] += squared
    return {group: error[group] / power[group] if power.get(group) else 0.0 for group in groups if group in tensors}


def op_sensitivity(
    capability: Capability,
    write: Callable[[TuningConfig], onnx.ModelProto],
    config: TuningConfig,
    fp32: onnx.ModelProto,
    groups: Sequence[str],
    feeds: Sequence[Feed],
    args: Mapping[str, Any],
) -> dict[str, float]:
    """``backends.sensitivity.op_sensitivity`` of ONNX models.

    Args:
        write: Gives the quantized model of a config; unchanged weights come from its cache.
    """
    names = [output.name for output in fp32.graph.output]

    def make(changed: TuningConfig | None) -> Callable[[Feed], Outputs]:
        runner = _Runner(fp32 if changed is None else write(changed))

        def predict(feed: Feed) -> Outputs:
            values = runner.run(feed)
            return [values[name] for name in names]

        return predict

    return sensitivity.op_sensitivity(capability, make, config, groups, feeds, args)


class _Runner:
    """Runs a model and gives tensors by name: the model's outputs, or chosen ones."""

    def __init__(self, proto: onnx.ModelProto, tensors: Sequence[str] | None = None) -> None:
        self._names = [output.name for output in proto.graph.output] if tensors is None else list(tensors)
        exposed = proto if tensors is None else with_outputs(proto, tensors)
        self._session = create_session(exposed)

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        return dict(zip(self._names, self._session.run(self._names, dict(feed)), strict=True))


def _dequantized_names(quantized: onnx.ModelProto, tensors: Sequence[str] | Any) -> dict[str, str]:
    """Where the dequantized value of each tensor can be read in the quantized graph."""
    made = {name for node in quantized.graph.node for name in node.output}
    return {name: next((n for n in (f"{name}_DequantizeLinear_Output", name) if n in made), name) for name in tensors}
