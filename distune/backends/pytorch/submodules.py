"""Which submodules of a module are exported, when it is not exported as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule

from distune.backends.pytorch.model import LoadedModule
from distune.backends.pytorch.partition import (
    Arguments,
    Partition,
    captured,
    joined,
    smaller,
    varying_axes,
    with_parts,
)
from distune.backends.pytorch.program import (
    ExportedModule,
    export_module,
    export_program,
    find_ops,
    input_infos,
)
from distune.backends.pytorch.refusal import reason
from distune.config.job import ModelSpec
from distune.data.user_code import user_code
from distune.errors import ModelError, UsageError


def exported(loaded: LoadedModule, spec: ModelSpec) -> ExportedModule:
    """Export a module as a whole or, where ``spec`` asks for that, in parts.

    Args:
        loaded: The module.
        spec: ``partition: auto`` takes the module apart where ``torch.export`` refuses the whole; ``exclude`` keeps
            submodules out of what is exported; ``parts`` says what the parts were when a config was found.

    Raises:
        ModelError: It cannot be exported, nor any of its submodules; with the reason of each.
        UsageError: A name in ``exclude`` matches no submodule.
    """
    if spec.parts is not None:
        return _in_parts(loaded, _known(loaded, spec.parts))
    if not spec.exclude:
        try:
            return export_module(loaded)
        except ModelError as error:
            if spec.partition != "auto":
                raise
            refused = error.__cause__
            if not isinstance(refused, Exception):
                raise
            first = (type(loaded.module).__name__, _short(refused))
    else:
        first = (type(loaded.module).__name__, "runs eager around its submodules: model.exclude names one of them")
    if loaded.program is not None:
        raise UsageError("model.exclude: a .pt2 program has no submodules; give the module itself")
    search = _Search(loaded, _excluded(loaded.module, spec.exclude))
    search.left.append((type(loaded.module).__name__, *first))
    search.descend("", loaded.module)
    if not search.found:
        reasons = "\n  ".join(f"{path} ({kind}): {why}" for path, kind, why in search.left)
        raise ModelError(
            f"no submodule of {type(loaded.module).__name__} with weights can be exported:\n  {reasons}\n"
            "Rewrite what torch.export stumbled over, or give a part of the model without it as the model"
        )
    return _in_parts(loaded, search)


def described_parts(partition: Partition) -> dict[str, list[dict[str, Any]]]:
    """The inputs of each part by its path, as plain values: the ``parts`` of a ``ModelSpec``."""
    return {
        part.path: [
            {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "dynamic": list(axes)}
            for value, axes in zip(part.examples, part.dynamic_axes, strict=True)
        ]
        for part in partition.parts
    }


@dataclass
class _Search:
    """Walks down a module until what is there can be exported."""

    loaded: LoadedModule
    excluded: frozenset[str]
    found: dict[str, tuple[torch.export.ExportedProgram, Arguments, tuple[tuple[int, ...], ...]]] = field(
        default_factory=dict
    )
    left: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        paths = [path for path, _ in self.loaded.module.named_modules() if path]
        names = iter(self.loaded.input_names)
        given = self.loaded.example_inputs
        axes = [() if value is None else self.loaded.dynamic_axes[next(names)] for value in given]
        batches = (given, *self.loaded.others, smaller(given, axes))
        with user_code(f"{type(self.loaded.module).__name__}.forward, given a batch of the data,"):
            self.calls = captured(self.loaded.module, paths, batches)

    def descend(self, path: str, module: torch.nn.Module) -> None:
        """Export what can be of the submodules of ``module``."""
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if not any(True for _ in child.parameters()):
                continue
            if inner in self.excluded:
                self.left.append((inner, type(child).__name__, "left out by model.exclude"))
                continue
            why = self._export(inner, child)
            if why:
                if not any(True for _ in child.children()) or self.calls[inner]:
                    self.left.append((inner, type(child).__name__, why))
                self.descend(inner, child)

    def _export(self, path: str, module: torch.nn.Module) -> str:
        """Export one submodule; why it cannot be."""
        if any(each.startswith(f"{path}.") for each in self.excluded):
            return "runs eager around its submodules: model.exclude names one of them"
        calls = self.calls[path]
        if not calls:
            return "is not called as a module in the batches that were looked at"
        seen = [call for call in calls if call is not None]
        if len(seen) < len(calls):
            return "is called with something else than tensors"
        kinds = {tuple((value.dim(), value.dtype) for value in call) for call in seen}
        if len(kinds) > 1:
            return "is called with inputs of several kinds"
        axes = varying_axes(seen)
        first = max(seen, key=lambda call: min((value.shape[0] for value in call if value.dim()), default=0))
        names = tuple(f"input_{number}" for number in range(len(first)))
        loaded = LoadedModule(module, first, names, dict(zip(names, axes, strict=True)))
        try:
            self.found[path] = (export_program(loaded), first, axes)
        except ModelError as error:
            return _short(error.__cause__ or error)
        return ""


def _known(loaded: LoadedModule, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> _Search:
    search = _Search(LoadedModule(torch.nn.Identity(), (torch.zeros(1),), ("input",), {"input": ()}), frozenset())
    for path, inputs in parts.items():
        examples = tuple(torch.zeros(each["shape"], dtype=getattr(torch, each["dtype"])) for each in inputs)
        axes = tuple(tuple(each["dynamic"]) for each in inputs)
        names = tuple(f"input_{number}" for number in range(len(examples)))
        try:
            module = loaded.module.get_submodule(path)
        except AttributeError as error:
            raise ModelError(
                f"the config was found for a model with a submodule {path!r}, which this one has not"
            ) from error
        one = LoadedModule(module, examples, names, dict(zip(names, axes, strict=True)))
        search.found[path] = (export_program(one), examples, axes)
    return search


def _in_parts(loaded: LoadedModule, search: _Search) -> ExportedModule:
    graphs: dict[str, GraphModule] = {
        path: program.module(check_guards=False) for path, (program, _, _) in search.found.items()
    }
    examples = {path: each for path, (_, each, _) in search.found.items()}
    axes = {path: each for path, (_, _, each) in search.found.items()}
    module, parts = joined(graphs, axes, examples)
    with torch.no_grad():
        outputs = loaded.module(*loaded.example_inputs) if search.left else None
    count = len(outputs) if isinstance(outputs, tuple | list | dict) else 1
    names = tuple(map(str, outputs)) if isinstance(outputs, dict) else tuple(f"output_{n}" for n in range(count))
    return ExportedModule(
        program=next(iter(search.found.values()))[0],
        graph_module=module,
        ops=find_ops(module),
        inputs=input_infos(loaded),
        output_names=("output",) if count == 1 and not isinstance(outputs, dict) else names,
        example_inputs=loaded.example_inputs,
        partition=Partition(with_parts(loaded.module, {}), parts, tuple(search.left)),
    )


def _excluded(module: torch.nn.Module, patterns: Sequence[str]) -> frozenset[str]:
    paths = [path for path, _ in module.named_modules() if path]
    found: set[str] = set()
    for pattern in patterns:
        matching = [path for path in paths if re.fullmatch(pattern, path)]
        if not matching:
            raise UsageError(
                f"model.exclude: {pattern!r} matches no submodule of {type(module).__name__}; it has: "
                f"{', '.join(paths[:20])}{', …' if len(paths) > 20 else ''}"
            )
        found.update(matching)
    return frozenset(found)


def _short(error: BaseException) -> str:
    text = reason(error) if isinstance(error, Exception) else str(error)
    return f"torch.export cannot read it: {text.splitlines()[0]}"
