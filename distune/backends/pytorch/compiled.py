"""Inductor with freezing: what a model is deployed as. Compiling takes seconds to minutes; it is counted, and kept.

A compiled function belongs to the shapes that it has seen: the first time another shape comes, Inductor compiles once
more, then for any size of the axes that changed.
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo as dynamo
from torch._inductor import config as inductor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.fx import GraphModule, Node

from distune.backends.pytorch.partition import Partition
from distune.backends.pytorch.threads import intra_op_threads
from distune.errors import TrialError, UsageError

_KEPT = 4
"""Compiled models in memory, the baseline among them."""

_RECOMPILES = 64


def require_compiler() -> None:
    """Make sure that Inductor finds a C++ compiler.

    Raises:
        UsageError: There is none.
    """
    try:
        get_cpp_compiler()
    except Exception as error:  # Inductor's class of it has moved between releases
        raise UsageError(
            "the PyTorch backend deploys and times models compiled by Inductor, which needs a C++ compiler: install "
            "g++ or clang++, or name one in the variable CXX"
        ) from error


class Compiled:
    """A graph compiled by Inductor for inference, with its weights frozen.

    Attributes:
        seconds: Spent on compiling so far, the first runs included.
    """

    def __init__(self, module: GraphModule, threads: int) -> None:
        self._threads = threads
        fixed = _has_one_channel_kernel(module)
        self._dynamic = [()] * len(_inputs(module)) if fixed else [_dynamic_axes(node) for node in _inputs(module)]
        self._function = torch.compile(module, dynamic=False if fixed else None)
        self._seen: set[tuple[Any, ...]] = set()
        self.seconds = 0.0

    def __call__(self, *arguments: torch.Tensor | None) -> Any:
        """Run one batch, compiling first where its shapes are new.

        Raises:
            TrialError: Inductor cannot compile the graph.
        """
        for value, axes in zip(arguments, self._dynamic, strict=True):
            for axis in axes:
                if value is not None and value.shape[axis] > 1:
                    dynamo.maybe_mark_dynamic(value, axis)  # or the second shape would be compiled for a second time
        return self._run(arguments)

    def _run(self, arguments: Sequence[torch.Tensor | None]) -> Any:
        shapes = tuple(() if each is None else tuple(each.shape) for each in arguments)
        with torch.no_grad(), intra_op_threads(self._threads):
            if shapes in self._seen:
                return self._function(*arguments)
            start = time.perf_counter()
            with _compiling():
                out = self._function(*arguments)
            self.seconds += time.perf_counter() - start
            self._seen.add(shapes)
            return out

    def closure(self, *arguments: torch.Tensor | None) -> Callable[[], object]:
        """Runs ``arguments`` once, with as little around it as possible; everything is compiled before this returns."""
        self._run(arguments)
        torch.set_num_threads(self._threads)
        function = self._function

        def run_once() -> object:
            with torch.no_grad():
                return function(*arguments)

        return run_once


class CompiledParts:
    """A model that was taken apart: its parts compiled, the rest of it the user's own code.

    Args:
        module: The joined graph.
        partition: How to take it apart.
    """

    def __init__(self, module: GraphModule, partition: Partition, threads: int) -> None:
        self._threads = threads
        self._parts = {path: Compiled(part, threads) for path, part in partition.split(module).items()}
        self._whole = partition.assembled(self._parts)

    @property
    def seconds(self) -> float:
        """Spent on compiling so far, the first runs included."""
        return sum(part.seconds for part in self._parts.values())

    def __call__(self, *arguments: torch.Tensor | None) -> Any:
        """As ``Compiled``."""
        with torch.no_grad(), intra_op_threads(self._threads):
            return self._whole(*arguments)

    def closure(self, *arguments: torch.Tensor | None) -> Callable[[], object]:
        """As ``Compiled``; the user's code decides which parts run."""
        self(*arguments)
        return lambda: self(*arguments)


class CompiledModels:
    """Compiled models by the hash of their config, the least used given up first.

    Kernels are kept by Inductor itself, for the other ranks of the node and for later runs: in the folder that
    ``TORCHINDUCTOR_CACHE_DIR`` names, by default one of the user's in the system's temporary folder. It stays on the
    node: Inductor compiles for the processor at hand, and does not tell processors apart when it looks a kernel up.

    Args:
        partition: How the module was taken apart, where it was.
    """

    def __init__(self, partition: Partition | None = None) -> None:
        self._partition = partition
        self._models: OrderedDict[tuple[str, int], Compiled | CompiledParts] = OrderedDict()

    def handle(self, key: str, threads: int, module: GraphModule) -> CompiledHandle:
        """What gives the compiled model of a key when it is asked for."""
        return CompiledHandle(self, (key, threads), module)

    def seconds(self, at: tuple[str, int]) -> float:
        """Spent on compiling a model so far."""
        return self._models[at].seconds if at in self._models else 0.0

    def get(self, at: tuple[str, int], module: GraphModule) -> Compiled | CompiledParts:
        """The compiled model of ``(key, threads)``: that of ``module`` where there is none yet."""
        if at not in self._models:
            parts = self._partition
            self._models[at] = Compiled(module, at[1]) if parts is None else CompiledParts(module, parts, at[1])
            while len(self._models) > _KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(at)
        return self._models[at]

    def close(self) -> None:
        """Give up all of them."""
        self._models.clear()
        dynamo.reset()


@dataclass(frozen=True)
class CompiledHandle:
    """A graph that is compiled when it is first asked for."""

    models: CompiledModels
    at: tuple[str, int]
    module: GraphModule

    def get(self) -> Compiled | CompiledParts:
        """The compiled model; it compiles as it meets shapes."""
        return self.models.get(self.at, self.module)

    @property
    def seconds(self) -> float:
        """Spent on compiling so far."""
        return self.models.seconds(self.at)


def _inputs(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _dynamic_axes(node: Node) -> tuple[int, ...]:
    """Axes of an input that the module was exported with a size of its own for."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    return tuple(axis for axis, size in enumerate(sizes) if not isinstance(size, int))


def _has_one_channel_kernel(module: GraphModule) -> bool:
    """Whether a convolution of a single input channel runs on integers.

    Where the batch is dynamic, Inductor (torch 2.13, ``mkldnn_ir``) expects such a convolution to give a contiguous
    tensor, which its floating-point kernel does; oneDNN's integer kernel gives channels_last. For fixed shapes both
    give channels_last, so those models are compiled for each shape by itself.
    """
    for node in module.graph.nodes:
        if node.target not in _CONVOLUTIONS or not isinstance(node.args[0], Node):
            continue
        source = node.args[0]
        integer = "dequantize" in str(source.target)
        while "quantize" in str(source.target) and source.all_input_nodes:
            source = source.all_input_nodes[0]
        value = source.meta.get("val")
        if integer and isinstance(value, torch.Tensor) and value.shape[1] == 1:
            return True
    return False


_CONVOLUTIONS = (
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv1d.padding,
    torch.ops.aten.conv2d.padding,
)


@contextmanager
def _compiling() -> Iterator[None]:
    # One compile thread: Inductor's pool of processes would outlive the trial, and compete with what is measured.
    settings = inductor.patch(freezing=True, compile_threads=1)
    limits = dynamo.config.patch(recompile_limit=_RECOMPILES, fail_on_recompile_limit_hit=True)
    try:
        with settings, limits, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about tensors that its passes build
            yield
    except Exception as error:  # Inductor's and Dynamo's classes are many
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise TrialError(f"Inductor cannot compile the model: {type(error).__name__}: {' '.join(lines[:4])}") from error
