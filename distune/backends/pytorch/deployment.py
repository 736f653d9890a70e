"""Using what a run has written: the quantized program of a ``.pt2`` file, as it is or compiled."""

from __future__ import annotations

import io

from distune.backends.pytorch.versions import require_torch

require_torch()  # registers the ops of the program

import torch  # noqa: E402
from torchao.quantization.pt2e import allow_exported_model_train_eval  # noqa: E402


def load(content: bytes) -> torch.nn.Module:
    """The quantized module of a ``.pt2`` file's bytes; it can be called in inference only."""
    module = torch.export.load(io.BytesIO(content)).module(check_guards=False)
    loaded: torch.nn.Module = allow_exported_model_train_eval(module)
    return loaded
