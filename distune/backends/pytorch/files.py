"""What a quantized graph is written as: its program, its state, and what makes both again without data."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule

from distune.backends.base import ExportedModel
from distune.backends.pytorch.program import ExportedModule, described_inputs, saved_program
from distune.backends.pytorch.quantizer import Range
from distune.backends.pytorch.recipes.variants import ModuleVariant
from distune.backends.pytorch.submodules import described_parts
from distune.backends.weight_only.grouped import GroupedWeight
from distune.backends.weight_only.kept import saved
from distune.space.op_config import TuningConfig


def written(
    module: GraphModule,
    model: ExportedModule,
    variant: ModuleVariant,
    config: TuningConfig,
    ranges: Mapping[str, Range],
    weights: Mapping[str, GroupedWeight],
    reduce_range: bool,
    corrected: Mapping[str, str],
) -> ExportedModel:
    """The files ``model.pt2`` and ``state.pt``, and what ``PyTorchBackend.apply`` needs.

    Args:
        module: The reference graph.
        model: In fp32.
        variant: The graph that was quantized.
        config: Effective.
        ranges, weights, reduce_range: What it was quantized with.
        corrected: Tensors as corrections left them (``Corrections.to_plain``).
    """
    deploy: dict[str, Any] = {"example_inputs": described_inputs(model)}
    if model.partition is not None:
        deploy["parts"] = described_parts(model.partition)
    if config.quantized_ops:
        deploy["ranges"] = {name: list(each) for name, each in ranges.items()}
        deploy["reduce_range"] = reduce_range
    if variant.saved:
        deploy["graph"] = dict(variant.saved)
    if corrected:
        deploy["corrected"] = dict(corrected)
    if texts := saved(weights, config.by_name):
        deploy["weights"] = texts
    state = io.BytesIO()
    torch.save({name: tensor.detach() for name, tensor in module.state_dict().items()}, state)
    return ExportedModel({"model.pt2": saved_program(module, model), "state.pt": state.getvalue()}, deploy)
