"""A module that ``torch.export`` cannot read as a whole: its largest submodules that can be, the rest left eager.

The graphs of the parts are put side by side into one graph, each with inputs and outputs of its own. What looks at a
graph or changes it (capability, calibration, conversion, lowering) works on that one as on any other. To run the model
the graph is taken apart again, and the user's module is copied with the parts in the place of the submodules.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

Arguments = tuple[torch.Tensor, ...]

PART = "part-"
"""What the names of programs of parts begin with in a ``.pt2`` file."""


@dataclass(frozen=True)
class Part:
    """One submodule that was exported.

    Attributes:
        path: Of the submodule.
        inputs: Names of its placeholders in the joined graph.
        dynamic_axes: By input the axes that may have another size in another batch.
        outputs: First and behind the last of its tensors among the outputs of the joined graph.
        codegen: What makes its outputs the structure that the submodule returns.
        examples: Inputs that it was exported with.
    """

    path: str
    inputs: tuple[str, ...]
    dynamic_axes: tuple[tuple[int, ...], ...]
    outputs: tuple[int, int]
    codegen: Any
    examples: Arguments


@dataclass(frozen=True)
class Partition:
    """How a module was taken apart.

    Attributes:
        top: A copy of the user's module in eval mode; tensors are shared.
        parts: In the order of its submodules.
        left: Path, class and reason of each submodule that stays eager.
    """

    top: torch.nn.Module
    parts: tuple[Part, ...]
    left: tuple[tuple[str, str, str], ...]

    @property
    def examples(self) -> Arguments:
        """Inputs of the joined graph."""
        return tuple(value for part in self.parts for value in part.examples)

    def split(self, joined: GraphModule) -> dict[str, GraphModule]:
        """The graph of each part by its path, taken from a joined graph; it shares parameters and buffers."""
        return {part.path: _taken(joined, part) for part in self.parts}

    def assembled(self, functions: Mapping[str, Callable[..., Any]]) -> torch.nn.Module:
        """A copy of the user's module, tensors shared, in which ``functions`` compute what the parts compute."""
        return with_parts(self.top, functions)

    def arguments(self, given: Sequence[torch.Tensor | None]) -> Arguments:
        """Inputs of the joined graph when the user's module is given ``given``.

        Where a part is called several times its inputs are put into one batch; where it is not called at all, its
        examples stand in: values that it has seen.
        """
        calls = captured(self.top, [part.path for part in self.parts], [given])
        out: list[torch.Tensor] = []
        for part in self.parts:
            seen = [call for call in calls[part.path] if call is not None and len(call) == len(part.examples)]
            batched = all(0 in axes for axes in part.dynamic_axes)
            if len(seen) > 1 and batched and len({_inner_shapes(call) for call in seen}) == 1:
                out += [torch.cat(each) for each in zip(*seen, strict=True)]
            else:
                out += seen[0] if seen else part.examples
        return tuple(out)


class _InPlaceOf(torch.nn.Module):  # type: ignore[misc]
    """Stands where a submodule stood; attributes that the rest of the model reads are the submodule's."""

    def __init__(self, original: torch.nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__.update(_original=original, _function=function)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = bound(self.__dict__["_original"], args, kwargs)
        if call is None:  # in another way than any call that was seen before
            return self.__dict__["_original"](*args, **kwargs)
        return self.__dict__["_function"](*call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)


def with_parts(top: torch.nn.Module, functions: Mapping[str, Callable[..., Any]]) -> torch.nn.Module:
    """A copy of ``top``, tensors shared, in which ``functions`` stand for the submodules of their paths."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*top.parameters(), *top.buffers())}
    for path, function in functions.items():
        original = top.get_submodule(path)
        memo[id(original)] = _InPlaceOf(original, function)
    made: torch.nn.Module = copy.deepcopy(top, memo)
    return made


def joined(
    modules: Mapping[str, GraphModule], axes: Mapping[str, Any], examples: Mapping[str, Arguments]
) -> tuple[GraphModule, tuple[Part, ...]]:
    """The graphs of exported submodules side by side in one, and the parts that they are.

    Args:
        modules: By path, without guards.
        axes: Dynamic axes of each input, by path.
        examples: By path.

    Returns:
        The joined graph module and its parts.
    """
    root, graph = torch.nn.Module(), torch.fx.Graph()
    mapping: dict[Node, Node] = {}
    for path, module in modules.items():
        _attach(root, path, module)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                placed = graph.placeholder(f"{path.replace('.', '_')}_{node.name}")
                placed.meta = copy.copy(node.meta)
                mapping[node] = placed
    parts: list[Part] = []
    results: list[Node] = []
    for path, module in modules.items():
        for node in module.graph.nodes:
            if node.op not in ("placeholder", "output"):
                made = graph.node_copy(node, lambda other: mapping[other])
                made.meta = copy.copy(node.meta)
                made.meta["nn_module_stack"] = _below(path, node.meta.get("nn_module_stack") or {})
                if node.op in ("get_attr", "call_module"):
                    made.target = f"{path}.{node.target}"
                mapping[node] = made
        flat = next(node for node in module.graph.nodes if node.op == "output").args[0]
        start = len(results)
        results += [mapping[each] for each in flat]
        inputs = tuple(mapping[node].name for node in module.graph.nodes if node.op == "placeholder")
        parts.append(
            Part(path, inputs, tuple(axes[path]), (start, len(results)), module.graph._codegen, examples[path])
        )
    graph.output(tuple(results))
    return GraphModule(root, graph), tuple(parts)


def captured(
    top: torch.nn.Module, paths: Sequence[str], given: Sequence[Sequence[torch.Tensor | None]]
) -> dict[str, list[Arguments | None]]:
    """Inputs of each call of submodules while ``top`` runs; ``None`` for a call with something else than tensors."""
    calls: dict[str, list[Arguments | None]] = {path: [] for path in paths}

    def remember(path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            call = bound(module, args, kwargs)
            calls[path].append(None if call is None else tuple(value.detach() for value in call))

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for path in paths:
            handle = top.get_submodule(path).register_forward_pre_hook(remember(path), with_kwargs=True)
            hooks.callback(handle.remove)
        for arguments in given:
            top(*arguments)
    return calls


def bound(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments | None:
    """The tensors of a call in the order of ``forward``'s parameters; ``None`` where it gives something else."""
    try:
        found = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:
        return None
    values: list[Any] = []
    for name, parameter in found.signature.parameters.items():
        if name not in found.arguments:
            values.append(None)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            values += found.arguments[name]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return None
        else:
            values.append(found.arguments[name])
    while values and values[-1] is None:
        values.pop()
    return tuple(values) if values and all(isinstance(value, torch.Tensor) for value in values) else None


def varying_axes(calls: Sequence[Arguments]) -> tuple[tuple[int, ...], ...]:
    """By input the axes that differ between calls, and the batch."""
    out = []
    for values in zip(*calls, strict=True):
        shapes = {tuple(value.shape) for value in values}
        rank = min(len(shape) for shape in shapes)
        out.append(tuple(axis for axis in range(rank) if len({shape[axis] for shape in shapes}) > 1))
    return tuple(out)


def smaller(given: Sequence[torch.Tensor | None], axes: Sequence[Sequence[int]]) -> tuple[torch.Tensor | None, ...]:
    """``given`` with one entry less on every dynamic axis that has three or more."""
    out: list[torch.Tensor | None] = []
    for value, dynamic in zip(given, axes, strict=True):
        for axis in dynamic if value is not None else ():
            if value is not None and value.shape[axis] > 2:
                value = value.narrow(axis, 0, value.shape[axis] - 1).contiguous()
        out.append(value)
    return tuple(out)


def _taken(joined_module: GraphModule, part: Part) -> GraphModule:
    output = next(node for node in joined_module.graph.nodes if node.op == "output")
    wanted = list(output.args[0])[slice(*part.outputs)]
    needed = set(_ancestors(wanted))
    graph = torch.fx.Graph()
    mapping: dict[Node, Node] = {}
    for node in joined_module.graph.nodes:
        if node in needed or (node.op == "placeholder" and node.name in part.inputs):
            mapping[node] = graph.node_copy(node, lambda other: mapping[other])
            mapping[node].meta = copy.copy(node.meta)
    graph.output(tuple(mapping[node] for node in wanted))
    graph._codegen = copy.copy(part.codegen)
    return GraphModule(joined_module, graph)


def _ancestors(nodes: Sequence[Node]) -> Iterator[Node]:
    waiting, seen = list(nodes), set(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        fresh = [other for other in node.all_input_nodes if other not in seen]
        seen.update(fresh)
        waiting += fresh


def _attach(root: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, torch.nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _below(path: str, stack: Mapping[str, Any]) -> dict[str, Any]:
    """The module stack of a node with the names that modules have in the whole model."""
    out = {}
    for key, (inner, *kind) in stack.items():
        out[f"{path}:{key}"] = (inner if inner.startswith("_empty") else ".".join(filter(None, (path, inner))), *kind)
    return out


def _inner_shapes(call: Arguments) -> tuple[torch.Size, ...]:
    return tuple(value.shape[1:] for value in call)
