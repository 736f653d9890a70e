"""A model that comes as a saved ``.pt2`` program, read without running code that the file may hold."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from distune.errors import ModelError

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_UNKNOWN_OP = re.compile(r"failed to resolve torch\.ops\.([\w.]+)")

Program = tuple[
    torch.nn.Module,
    tuple[torch.Tensor | None, ...],
    tuple[str, ...],
    Mapping[str, tuple[int, ...]],
    torch.export.ExportedProgram,
]
"""The fields of a ``LoadedModule``, in order."""


def read_program(path: Path, trust_pickle: bool = False) -> Program:
    """The module of a ``.pt2`` file, what it was exported with, its inputs and their dynamic axes, and the program.

    Raises:
        ModelError: It does not exist, is no program of tensors, needs pickle, or calls an op that is not registered.
    """
    if not path.is_file():
        raise ModelError(f"model file {path} does not exist")
    with _remarks() as said:
        try:
            with _no_pickle(trust_pickle):
                program = torch.export.load(path)
        except pickle.UnpicklingError as error:
            reason = first_lines(str(error))
            raise ModelError(f"model {path} holds pickled objects, which are not read: {reason}") from error
        except Exception as error:  # of the archive reader, which has many
            unknown = _UNKNOWN_OP.search("\n".join([*said, str(error)]))
            if unknown is not None:
                raise ModelError(
                    f"model {path} calls the custom op torch.ops.{unknown.group(1)}, which nothing has registered: a "
                    ".pt2 file does not bring its ops along. Give the module instead: model.path: file.py:builder, in "
                    "a file that imports what registers them"
                ) from error
            raise ModelError(
                f"model {path} cannot be read as a saved torch.export program: {first_lines(str(error))}"
            ) from error
    if program.example_inputs is None:
        raise ModelError(f"model {path} holds no example inputs; save it again with torch.export.save")
    arguments, keywords = program.example_inputs
    if keywords or not all(isinstance(value, torch.Tensor) or value is None for value in arguments):
        raise ModelError(f"model {path} takes other arguments than tensors in order; export it with tensors alone")
    module = program.module(check_guards=False)
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    dynamic = {
        name: tuple(axis for axis, size in enumerate(value.shape) if not isinstance(size, int))
        for name, value in zip(names, values, strict=True)
        if isinstance(value, torch.Tensor)
    }
    return module, tuple(arguments), tuple(dynamic), dynamic, program


def first_lines(text: str, limit: int = 300) -> str:
    """The beginning of a message of torch's, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = " ".join(lines)
    return joined if len(joined) <= limit else f"{joined[:limit]}…"


@contextmanager
def _remarks() -> Iterator[list[str]]:
    """What torch.export logs, kept instead of shown: where loading fails it logs the reason and raises another."""
    said: list[str] = []
    logger = logging.getLogger("torch.export")

    def keep(record: logging.LogRecord) -> bool:
        said.append(logging.Formatter().format(record))
        return False

    logger.addFilter(keep)
    try:
        yield said
    finally:
        logger.removeFilter(keep)


@contextmanager
def _no_pickle(trusted: bool) -> Iterator[None]:
    """torch.export.load reads some entries of an archive by pickle unless torch is told otherwise by a variable."""
    before = os.environ.get(_WEIGHTS_ONLY)
    if not trusted:
        os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_WEIGHTS_ONLY, None)
        else:
            os.environ[_WEIGHTS_ONLY] = before
