"""Training and inference form of an exported graph: what batch norm and dropout do there is written in the nodes.

torchao's own helpers for this replace the nodes and put the defaults of ``eps`` and ``momentum`` in
(torchao 0.18, ``export_utils._replace_batchnorm``, ``qat_utils._get_qat_conv_bn_pattern``); here only the flag is
turned, and where torchao replaces nodes anyway, the module's own values are put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

_VARIANCE, _TRAINING, _MOMENTUM, _EPS = 4, 5, 6, 7
_DROPOUTS = (aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_DEFAULT_MOMENTUM = 0.1


@dataclass(frozen=True)
class NormSettings:
    """Settings of one batch norm."""

    momentum: float
    eps: float


def norm_settings(module: GraphModule) -> dict[str, NormSettings]:
    """Settings of every batch norm with running statistics, by the name of its running variance.

    A batch norm that averages over all batches ever seen (``momentum=None``) is exported with momentum 0, by which its
    statistics would stand still: it gets torch's default.
    """
    found: dict[str, NormSettings] = {}
    for node in _norms(module):
        momentum, eps = node.args[_MOMENTUM], node.args[_EPS]
        assert isinstance(momentum, float)  # the schema of the op says so, and of the next
        assert isinstance(eps, float)
        if name := _attribute(node.args[_VARIANCE]):
            found[name] = NormSettings(momentum or _DEFAULT_MOMENTUM, eps)
    return found


def set_training(module: GraphModule, training: bool, frozen_statistics: bool = False) -> None:
    """Turn batch norm and dropout to training or inference.

    Args:
        module: Changed in place.
        training: What it is for.
        frozen_statistics: Batch norm uses its running statistics in training too, and leaves them as they are.
    """
    for node in _norms(module):
        if _attribute(node.args[_VARIANCE]):
            node.update_arg(_TRAINING, training and not frozen_statistics)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _DROPOUTS:
            node.update_arg(2, training)
    module.recompile()


def restore_settings(module: GraphModule, settings: Mapping[str, NormSettings]) -> None:
    """Put ``settings`` into every batch norm, and into the scale that a convolution before one is trained with."""
    for node in _norms(module):
        own = settings.get(_attribute(node.args[_VARIANCE]))
        if own is not None:
            node.update_arg(_MOMENTUM, own.momentum)
            node.update_arg(_EPS, own.eps)
    for node in module.graph.nodes:
        # ``sqrt(running_var + eps)`` of torchao's pattern
        if node.op == "call_function" and node.target == aten.add.Tensor and isinstance(node.args[1], float):
            own = settings.get(_attribute(node.args[0]))
            if own is not None:
                node.update_arg(1, own.eps)
    module.recompile()


def _norms(module: GraphModule) -> list[Node]:
    return [
        node for node in module.graph.nodes if node.op == "call_function" and node.target == aten.batch_norm.default
    ]


def _attribute(node: object) -> str:
    """Name of the parameter or buffer that a node reads, empty where it reads none."""
    return str(node.target) if isinstance(node, Node) and node.op == "get_attr" else ""


__all__ = ["NormSettings", "norm_settings", "restore_settings", "set_training"]
