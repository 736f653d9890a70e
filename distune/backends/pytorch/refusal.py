"""Why ``torch.export`` refuses a module: where in the user's code, in torch's words, and what can be done."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

from distune.backends.pytorch.model import LoadedModule
from distune.data.user_code import user_code

_REMARK = re.compile(
    r"For (more|extended|C\+\+)|If you suspect the guard|consider using data-dependent friendly|Caused by: \(_|"
    r"The error above occurred when calling torch\.export"
)
"""Lines in which torch speaks to its own developers."""

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = str(Path(__file__).resolve().parents[2])
_LINES = 6


def refusal(loaded: LoadedModule, error: Exception) -> str:
    """What a user is told of ``error``, which ``torch.export`` raised for a module.

    Raises:
        UserCodeError: The module does not run on its example inputs either: the fault is not torch.export's.
    """
    module = loaded.module
    who = f"{type(module).__name__}.forward, given the example inputs ({_described(loaded)}),"
    with user_code(who), torch.no_grad():
        module(*loaded.example_inputs)
    where = _failing_module(module, error)
    at = "" if where is None else f", in module {where[0]!r} ({where[1]})" if where[0] else ", in its own forward"
    line = _failing_line(error)
    return (
        f"torch.export cannot read {type(module).__name__}{at}{line}: {type(error).__name__}: {reason(error)}\n"
        f"{_advice(error)}"
    )


def reason(error: Exception) -> str:
    """Torch's own words, without its remarks on debugging torch."""
    lines = [line.rstrip() for line in str(error).strip().splitlines()]
    lines = [line.replace("  (Size-like symbols: none)", "") for line in lines if line and not _REMARK.search(line)]
    return "\n  ".join(lines[:_LINES]) or type(error).__name__


def _described(loaded: LoadedModule) -> str:
    given = [value for value in loaded.example_inputs if value is not None]
    return ", ".join(
        f"{name}: {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in zip(loaded.input_names, given, strict=True)
    )


def _advice(error: Exception) -> str:
    text = str(error)
    if "fake impl" in text or "fake kernel" in text:
        return (
            "torch.export has to know the shape of what a custom op gives: tell it with the op's register_fake, or set "
            "model.partition: auto, which leaves the module of the op eager"
        )
    decides = "data-dependent" in text or type(error).__name__.startswith("GuardOnDataDependent")
    rewrite = "torch.where or torch.cond instead of an if on values" if decides else "see torch's reason"
    return (
        f"Rewrite what it stumbled over ({rewrite}), or set model.partition: auto, which quantizes the largest "
        "submodules that can be exported and leaves the rest eager"
    )


def _failing_line(error: BaseException) -> str:
    """The innermost line of the user's code on the traceback."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_TORCH, _PACKAGE, "<"))
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""


def _failing_module(module: torch.nn.Module, error: BaseException) -> tuple[str, str] | None:
    """Path and class of the innermost module whose ``forward`` is on the traceback; an empty path for ``module``."""
    paths = {id(child): name for name, child in module.named_modules()}
    found = None
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code.co_name == "forward" and id(owner) in paths:
            found = (paths[id(owner)], type(owner).__name__)
        trace = trace.tb_next
    return found
