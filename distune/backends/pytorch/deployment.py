"""Using what a run has written: the quantized program of a ``.pt2`` file, or those of a module's parts."""

from __future__ import annotations

import io

from distune.backends.pytorch.versions import require_torch

require_torch()  # registers the ops of the program

import torch  # noqa: E402
from torch.export.pt2_archive._package import load_pt2  # noqa: E402
from torchao.quantization.pt2e import allow_exported_model_train_eval  # noqa: E402

from distune.backends.pytorch.partition import PART, with_parts  # noqa: E402
from distune.errors import ModelError  # noqa: E402

_WHOLE = "model"
"""What a program that is no part is called in its file."""


def load(content: bytes) -> torch.nn.Module:
    """The quantized module of a ``.pt2`` file's bytes; it can be called in inference only.

    Raises:
        ModelError: The file holds parts of a module only.
    """
    programs = load_pt2(io.BytesIO(content)).exported_programs
    if set(programs) != {_WHOLE}:
        raise ModelError(
            f"the file holds parts of a module that was not exported as a whole ({', '.join(programs)}): put them into "
            "that module by distune.backends.pytorch.deployment.load_parts(module, content)"
        )
    return _module(programs[_WHOLE])


def load_parts(module: torch.nn.Module, content: bytes) -> torch.nn.Module:
    """A copy of the fp32 ``module``, which was taken apart, with its quantized parts from a ``.pt2`` file's bytes.

    Args:
        module: With its fp32 weights: what stays eager runs on them.
        content: Of the ``model.pt2`` of a run with ``model.partition: auto`` or ``model.exclude``.

    Raises:
        ModelError: The module has no submodule where a part belongs.
    """
    stored = load_pt2(io.BytesIO(content)).exported_programs
    programs = {name.removeprefix(PART): program for name, program in stored.items() if name.startswith(PART)}
    if not programs:
        raise ModelError("the file holds a module that was exported as a whole; use load(content)")
    paths = {path for path, _ in module.named_modules()}
    missing = [path for path in programs if path not in paths]
    if missing:
        raise ModelError(f"the file holds a part {missing[0]!r}, but the module has no such submodule")
    functions = {path: _module(program) for path, program in programs.items()}
    in_eval_mode = with_parts(module, {}).eval()  # the user's own module keeps its modes
    return with_parts(in_eval_mode, functions)


def _module(program: torch.export.ExportedProgram) -> torch.nn.Module:
    loaded: torch.nn.Module = allow_exported_model_train_eval(program.module(check_guards=False))
    return loaded
