"""Whether a module is the same when a run is resumed: its code and every tensor that it computes with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.fx import GraphModule

from distune.backends.pytorch.program import ExportedModule


def digest(model: ExportedModule) -> str:
    """SHA-256 of the exported graph and of all tensors, those of what stays eager included.

    Not of what decides in eager code beside its tensors: that is its source, and numbers that are attributes.
    """
    content = hashlib.sha256()
    for path, module in model.graph_module.named_modules():
        if isinstance(module, GraphModule):
            content.update(f"{path} {module.code}".encode())
    modules = [model.graph_module, *([] if model.partition is None else [model.partition.top])]
    for module in modules:
        for name, tensor in sorted(_tensors(module), key=lambda pair: pair[0]):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            content.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return content.hexdigest()


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and tensors that are plain attributes."""
    for path, each in module.named_modules():
        for name, value in (*each._parameters.items(), *each._buffers.items(), *vars(each).items()):
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name}", value
