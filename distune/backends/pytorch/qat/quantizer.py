"""Annotates the graph that is trained, with batch norm in it, by a tuning config that is about the folded graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from distune.backends.cpu import needs_reduce_range
from distune.backends.pytorch.capability import quantized_edges
from distune.backends.pytorch.options import OP_KINDS
from distune.backends.pytorch.program import ExportedModule, ModuleOp
from distune.backends.pytorch.qat.fake_quantize import (
    ActivationFakeQuantize,
    Constructor,
    FollowingFakeQuantize,
    WeightFakeQuantize,
)
from distune.backends.pytorch.quantizer import range_source
from distune.errors import TrialError
from distune.space.op_config import OpConfig, TuningConfig


class TrainingQuantizer(Quantizer):  # type: ignore[misc]
    """Puts fake quantization where ``TuningQuantizer`` puts scales.

    Args:
        plain: The module as exported, batch norm included: what is trained.
        folded: The same with batch norm folded: what ``config`` is about.
        config: Effective; static ops are trained, everything else stays in floating point.

    Attributes:
        activations: By name of the tensor (in ``folded``) whose range each one learns.
    """

    def __init__(self, plain: ExportedModule, folded: ExportedModule, config: TuningConfig) -> None:
        super().__init__()
        self._plain = plain
        self._folded = folded
        self._config = config
        self._reduce_range = needs_reduce_range()
        self._specs: dict[tuple[str, bool], QuantizationSpec] = {}
        self.activations: dict[str, ActivationFakeQuantize] = {}

    def annotate(self, model: GraphModule) -> GraphModule:
        """Put an annotation on every node that is quantized statically."""
        nodes = {node.name: node for node in model.graph.nodes}
        for name, op_config in self._config.ops:
            if op_config.mode != "static":
                continue
            op = self._folded.op.get(name)
            if op is None or name not in self._plain.op:
                raise TrialError(f"the config is about an op {name!r} that the model does not have")
            self._annotate(op, op_config, nodes)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: the options of the tuning space hold only what the lowering takes."""

    def _annotate(self, op: ModuleOp, config: OpConfig, nodes: Mapping[str, Node]) -> None:
        edges = quantized_edges(self._folded, op)
        node = nodes[op.node]
        inputs: dict[Node, QuantizationSpec] = {}
        output: QuantizationSpec | None = None
        # The input before the weight: where torchao puts batch norm into the weight it goes by their order.
        if config.activation is not None:
            if OP_KINDS[op.op_type] == "joined":
                # Values of all inputs on one grid are the joined values on that grid; and one observer sees them all.
                output = self._activation(op, op.node, config)
            else:
                inputs |= {self._produced(nodes, name): self._activation(op, name, config) for name in edges.inputs}
        if config.weight is not None and edges.weight:
            weight, reduce_range = config.weight, self._reduce_range
            inputs[nodes[self._plain.op[op.name].weight_node]] = _spec(lambda: WeightFakeQuantize(weight, reduce_range))
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )

    def _activation(self, op: ModuleOp, tensor: str, config: OpConfig) -> QuantizationSpec:
        assert config.activation is not None  # asked before
        source = range_source(self._folded, self._config, op, tensor)
        if source not in self.activations:
            self.activations[source] = ActivationFakeQuantize(config.activation)
        learning, follows = self.activations[source], source != tensor
        key = (source, follows)
        if key not in self._specs:
            self._specs[key] = _spec(lambda: FollowingFakeQuantize(learning) if follows else learning)
        return self._specs[key]

    def _produced(self, nodes: Mapping[str, Node], name: str) -> Node:
        """The node of the trained graph that makes a tensor of the folded graph: behind batch norm."""
        node = nodes[name]
        while True:
            norm = next(
                (
                    user
                    for user in node.users
                    if user.target == torch.ops.aten.batch_norm.default and user.name not in self._folded.nodes
                ),
                None,
            )
            if norm is None:
                return node
            node = norm


def _spec(make: Callable[[], FakeQuantizeBase]) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8, observer_or_fake_quant_ctr=Constructor(make), quant_min=-128, quant_max=127, is_dynamic=False
    )


__all__ = ["TrainingQuantizer"]
