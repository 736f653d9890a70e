"""A quantizer for torchao's PT2E that annotates each node from the tuning config, with ready scales.

PT2E asks observers for scales and zero points when a graph is converted. Ours observe nothing: they hold what was
computed from the statistics of the run, so that a trial needs no sweep over data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import ObserverBase, PlaceholderObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from distune.backends.cpu import needs_reduce_range
from distune.backends.pytorch.capability import quantized_edges, source_of
from distune.backends.pytorch.options import OP_KINDS
from distune.backends.pytorch.program import ExportedModule, ModuleOp
from distune.backends.pytorch.qparams import QParams, activation_qparams, weight_qparams
from distune.errors import TrialError
from distune.space.op_config import OpConfig, TensorConfig, TuningConfig

Range = tuple[float, float]


@dataclass
class WeightScales:
    """Scales of the weights of one graph, shared by all trials.

    Attributes:
        kept: By weight name and how it is quantized.
    """

    kept: dict[tuple[str, TensorConfig, bool], QParams] = field(default_factory=dict)

    def of(self, model: ExportedModule, op: ModuleOp, config: TensorConfig, reduce_range: bool) -> QParams:
        """The scales of the weight of ``op``."""
        key = (op.weight, config, reduce_range)
        if key not in self.kept:
            self.kept[key] = weight_qparams(model.tensor(op.weight), config, reduce_range=reduce_range)
        return self.kept[key]


class FixedObserver(ObserverBase):  # type: ignore[misc]
    """Says the scale and zero point it was made with."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__(dtype=qparams.dtype, is_dynamic=False)
        per_channel = qparams.axis is not None
        self.qparams = qparams
        self.quant_min, self.quant_max = qparams.quant_min, qparams.quant_max
        self.qscheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_affine
        self.ch_axis = qparams.axis if per_channel else -1

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point."""
        return self.qparams.scale, self.qparams.zero_point


class _Constructor:
    """What PT2E makes a ``FixedObserver`` with. It copies what it is given: the tensors inside stay shared."""

    __name__ = "FixedObserver"

    def __init__(self, qparams: QParams) -> None:
        self._qparams = qparams

    def with_args(self, **_: Any) -> Callable[[], FixedObserver]:
        return lambda: FixedObserver(self._qparams)

    def __call__(self) -> FixedObserver:
        return FixedObserver(self._qparams)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Constructor:
        return self


class TuningQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a copy of the graph of ``model`` by a tuning config.

    Args:
        model: What the config is about.
        config: Effective.
        ranges: By name of the tensor, for those of ``needed_ranges``.
        scales: Kept from trial to trial.
        reduce_range: See ``cpu.needs_reduce_range``; this processor's by default.
    """

    def __init__(
        self,
        model: ExportedModule,
        config: TuningConfig,
        ranges: Mapping[str, Range],
        scales: WeightScales | None = None,
        reduce_range: bool | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._config = config
        self._ranges = ranges
        self._scales = scales or WeightScales()
        self._reduce_range = needs_reduce_range() if reduce_range is None else reduce_range
        self._specs: dict[tuple[str, TensorConfig], QuantizationSpec] = {}

    def annotate(self, model: GraphModule) -> GraphModule:
        """Put an annotation on every node that the config quantizes."""
        nodes = {node.name: node for node in model.graph.nodes}
        for name, op_config in self._config.ops:
            if op_config.mode not in ("static", "dynamic"):
                continue
            op = self._model.op.get(name)
            if op is None:
                raise TrialError(f"the config is about an op {name!r} that the model does not have")
            self._annotate(op, op_config, nodes)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the options of the tuning space hold only what the lowering takes."""

    def _annotate(self, op: ModuleOp, config: OpConfig, nodes: Mapping[str, Node]) -> None:
        edges = quantized_edges(self._model, op)
        specs: dict[Node, QuantizationSpec] = {}
        if config.activation is not None:
            for name in edges.inputs:
                specs[nodes[name]] = self._activation(op, name, config)
        if config.weight is not None and edges.weight:
            qparams = self._scales.of(self._model, op, config.weight, self._reduce_range)
            specs[nodes[edges.weight]] = _spec(qparams)
        nodes[op.node].meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)

    def _activation(self, op: ModuleOp, tensor: str, config: OpConfig) -> QuantizationSpec:
        assert config.activation is not None  # asked before
        if config.mode == "dynamic":
            return _DYNAMIC
        key = (range_source(self._model, self._config, op, tensor), config.activation)
        if key not in self._specs:
            if key[0] not in self._ranges:
                raise TrialError(f"there is no calibrated range of {key[0]!r}, an input of op {op.name!r}")
            self._specs[key] = _spec(activation_qparams(*self._ranges[key[0]], config.activation))
        return self._specs[key]


def range_source(model: ExportedModule, config: TuningConfig, op: ModuleOp, tensor: str) -> str:
    """The tensor whose range the input ``tensor`` of ``op`` is quantized with."""
    if OP_KINDS[op.op_type] == "joined":
        return op.node
    return source_of(model, config, tensor)


def needed_ranges(model: ExportedModule, config: TuningConfig) -> dict[str, str]:
    """The tensors whose ranges a config needs, with the algorithm of each."""
    found: dict[str, str] = {}
    for name, op_config in config.ops:
        if op_config.mode != "static" or op_config.activation is None or name not in model.op:
            continue
        op = model.op[name]
        for tensor in quantized_edges(model, op).inputs:
            found.setdefault(range_source(model, config, op, tensor), op_config.activation.algorithm)
    return found


def _spec(qparams: QParams) -> QuantizationSpec:
    per_channel = qparams.axis is not None
    return QuantizationSpec(
        dtype=qparams.dtype,
        observer_or_fake_quant_ctr=_Constructor(qparams),
        quant_min=qparams.quant_min,
        quant_max=qparams.quant_max,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_affine,
        ch_axis=qparams.axis,
    )


_DYNAMIC = QuantizationSpec(
    dtype=torch.uint8,
    observer_or_fake_quant_ctr=PlaceholderObserver.with_args(eps=2**-12),
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
    is_dynamic=True,
)
