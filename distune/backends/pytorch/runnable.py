"""An exported graph as a ``RunnableModel``: eager for judging, lowered by Inductor where it is deployed or timed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from distune.backends.base import Feed, Outputs, RunnableModel
from distune.backends.pytorch.model import to_tensor
from distune.errors import ModelError


class GraphModel(RunnableModel):
    """A graph that runs in eager mode.

    Args:
        module: The graph, fp32 or with quantize and dequantize nodes.
        arguments: Parameter names of ``module.forward`` in order; ``None`` where ``None`` is passed.
        threads: Intra-op threads.
        warnings: For the user.
    """

    def __init__(
        self, module: GraphModule, arguments: Sequence[str | None], threads: int, warnings: Sequence[str] = ()
    ) -> None:
        self._module = module
        self._arguments = tuple(arguments)
        self._threads = threads
        self._warnings = tuple(warnings)

    def predict(self, feed: Feed) -> Outputs:
        with torch.inference_mode(), intra_op_threads(self._threads):
            return to_arrays(self._module(*self.tensors(feed)))

    def timed(self, feed: Feed) -> Callable[[], object]:
        tensors, module = self.tensors(feed), self._module
        torch.set_num_threads(self._threads)

        def run_once() -> object:
            with torch.inference_mode():
                return module(*tensors)

        return run_once

    def tensors(self, feed: Feed) -> tuple[torch.Tensor | None, ...]:
        """The arguments of ``forward``."""
        return tuple(None if name is None else to_tensor(feed[name]) for name in self._arguments)

    @property
    def native(self) -> torch.nn.Module:
        return self._module

    @cached_property
    def size_bytes(self) -> int:
        return state_bytes(self._module)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._warnings


class intra_op_threads:
    """Intra-op threads inside a ``with`` block; setting them costs, so only where they differ."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._before = threads

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._threads:
            torch.set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        if self._before != self._threads:
            torch.set_num_threads(self._before)


def to_arrays(outputs: Any) -> list[Any]:
    """Outputs of a module in order: tensors of tuples, lists and mappings, as arrays."""
    if isinstance(outputs, torch.Tensor):
        tensor = outputs.detach()
        return [tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()]
    if isinstance(outputs, int | float | bool):
        return [np.asarray(outputs)]
    values = outputs.values() if hasattr(outputs, "values") else outputs
    if not hasattr(values, "__iter__"):
        raise ModelError(f"the model returns a {type(outputs).__name__}; expected tensors")
    return [array for value in values if value is not None for array in to_arrays(value)]


def state_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's distinct tensors as ``torch.save`` writes them."""
    buffer = io.BytesIO()
    tensors = {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())}
    torch.save(tensors, buffer)
    return buffer.getbuffer().nbytes
