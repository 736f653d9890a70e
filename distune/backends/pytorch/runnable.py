"""An exported graph as a ``RunnableModel``: eager for judging, lowered by Inductor where it is deployed or timed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule

from distune.backends.base import Feed, Outputs, RunnableModel
from distune.backends.pytorch.model import to_tensor
from distune.backends.pytorch.program import ExportedModule
from distune.backends.pytorch.threads import intra_op_threads
from distune.errors import ModelError

if TYPE_CHECKING:
    from distune.backends.pytorch.compiled import CompiledHandle
    from distune.backends.pytorch.lowering import Execution


class GraphModel(RunnableModel):
    """A graph that is judged in eager mode and timed as Inductor compiles it.

    Args:
        module: The graph, fp32 or with quantize and dequantize nodes and integer weights.
        model: The fp32 model, for what is fed.
        threads: Intra-op threads.
        compiled: The same graph for Inductor.
        eager: The same graph in the form that runs fastest in eager mode; ``module`` itself by default.
        executed: How the quantized weighted ops run, read from the lowered graph; ``None`` for the fp32 model.
        warnings: For the user.
    """

    def __init__(
        self,
        module: GraphModule,
        model: ExportedModule,
        threads: int,
        compiled: CompiledHandle,
        eager: GraphModule | None = None,
        executed: Callable[[], Execution] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self._module = module
        self._model = model
        self._threads = threads
        self._compiled = compiled
        self._eager = _runnable(module if eager is None else eager, model)
        self._executed = executed
        self._warnings = tuple(warnings)

    def predict(self, feed: Feed) -> Outputs:
        with torch.inference_mode(), intra_op_threads(self._threads):
            return to_arrays(self._eager(*fed(self._model, feed)))

    def timed(self, feed: Feed) -> Callable[[], object]:
        return self._compiled.get().closure(*fed(self._model, feed))

    @property
    def native(self) -> torch.nn.Module:
        return _runnable(self._module, self._model)

    @cached_property
    def size_bytes(self) -> int:
        return state_bytes(self._module)

    @property
    def compile_s(self) -> float:
        return self._compiled.seconds

    @property
    def ops_executed_int8(self) -> int | None:
        return 0 if self._execution is None else len(self._execution.integer)

    @property
    def reasons(self) -> Mapping[str, str]:
        return {} if self._execution is None else self._execution.reasons

    @property
    def kernels(self) -> tuple[tuple[str, str], ...]:
        """Functions that the lowered graph calls, with the dtype of what each gives."""
        return () if self._execution is None else self._execution.kernels

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._warnings

    @cached_property
    def _execution(self) -> Execution | None:
        return None if self._executed is None else self._executed()


class DeployedModel(GraphModel):
    """The same model, judged as it is deployed: compiled."""

    def predict(self, feed: Feed) -> Outputs:
        return to_arrays(self._compiled.get()(*fed(self._model, feed)))


def fed(model: ExportedModule, feed: Feed) -> tuple[torch.Tensor | None, ...]:
    """The arguments of the module's ``forward`` in order."""
    names = iter(info.name for info in model.inputs)
    return tuple(None if example is None else to_tensor(feed[next(names)]) for example in model.example_inputs)


def arguments_of(model: ExportedModule, feed: Feed) -> tuple[torch.Tensor | None, ...]:
    """The arguments of the module's graph in order: those of ``forward``, or of all parts of a module taken apart."""
    given = fed(model, feed)
    return given if model.partition is None else model.partition.arguments(given)


def _runnable(module: GraphModule, model: ExportedModule) -> torch.nn.Module:
    partition = model.partition
    return module if partition is None else partition.assembled(partition.split(module))


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
