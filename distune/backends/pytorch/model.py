"""The fp32 module: a live ``nn.Module``, a builder in a file or module with weights, or a saved ``.pt2`` program."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distune.backends.pytorch.saved import first_lines, read_program
from distune.backends.pytorch.signature import Signature
from distune.config.imports import import_object, split_reference
from distune.config.job import ModelSpec
from distune.data.batch import Inputs, to_arrays
from distune.data.user_code import user_code
from distune.errors import MissingExtraError, ModelError

_SMALLEST_BATCH = 2
"""torch.export takes a batch of one for a constant."""


@dataclass(frozen=True)
class LoadedModule:
    """A module in eval mode that can be exported.

    Attributes:
        module: Float weights; not shared with anybody who trains it.
        example_inputs: What ``module.forward`` is exported with, in the order of its parameters; ``None`` for optional
            parameters that are not fed. Axis 0 of tensors holds two samples or more.
        input_names: Names of the parameters of ``forward`` that are fed, in order.
        dynamic_axes: By input name the axes that may have another size in another batch.
        program: The exported program itself where the model came as a ``.pt2`` file.
        others: What ``module.forward`` is given in other batches of the data.
    """

    module: torch.nn.Module
    example_inputs: tuple[torch.Tensor | None, ...]
    input_names: tuple[str, ...]
    dynamic_axes: Mapping[str, tuple[int, ...]]
    program: torch.export.ExportedProgram | None = None
    others: tuple[tuple[torch.Tensor | None, ...], ...] = ()


def load_module(spec: ModelSpec, examples: Sequence[Inputs] = ()) -> LoadedModule:
    """Load the fp32 module of a job.

    Args:
        spec: Where it is.
        examples: Inputs of first batches of the user's data; what is exported with where ``spec`` names no
            ``example_inputs``. Axes in which they differ are dynamic.

    Raises:
        ModelError: It does not exist, its weights do not fit or would need pickle, or there is nothing to run it with.
        UserCodeError: The builder raises.
    """
    if spec.live is None and spec.path.endswith(".pt2"):
        return LoadedModule(*read_program(Path(spec.path), trust_pickle=spec.trust_pickle))
    module = spec.live if spec.live is not None else _built(spec)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{_where(spec)} is a {type(module).__name__}; expected a torch.nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(f"{_where(spec)} is TorchScript, which torch.export cannot read; give the nn.Module itself")
    module.eval()
    signature = Signature.of(module)
    batches = [signature.by_name(inputs) for inputs in _given_examples(spec) or examples]
    if not batches:
        raise ModelError(
            f"{_where(spec)}: there is nothing to export it with; give example_inputs, or data for calibration "
            "or evaluation"
        )
    first = batches[0]
    parameters = signature.arguments(first)
    last = max(parameters.index(name) for name in first)
    arguments, *others = (
        tuple(_at_least_two(batch[name]) if name in batch else None for name in parameters[: last + 1])
        for batch in batches
        if batch.keys() == first.keys()
    )
    names = tuple(name for name in parameters[: last + 1] if name in first)
    dynamic = {**_dynamic_axes(names, batches), **_described_axes(spec)}
    return LoadedModule(module, arguments, names, dynamic, others=tuple(others))


@contextmanager
def modes_kept(module: object) -> Iterator[None]:
    """Leave every submodule of a module of the user's in the mode (training or eval) that it is in now."""
    modes = [(each, each.training) for each in module.modules()] if isinstance(module, torch.nn.Module) else []
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def to_tensor(array: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU that shares memory with ``array`` where it may be written to."""
    if isinstance(array, torch.Tensor):
        return array.detach().cpu()
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _where(spec: ModelSpec) -> str:
    return f"model {spec.path!r}" if spec.path else "the model"


# ------------------------------------------------------------------------------------------------ builders and weights


def _built(spec: ModelSpec) -> Any:
    if not split_reference(spec.path)[1]:
        raise ModelError(
            f"model {spec.path!r} names no builder; write file.py:builder or module:builder, or give a .pt2 file"
        )
    builder = import_object(spec.path, "model")
    if isinstance(builder, torch.nn.Module):
        module: Any = builder
    elif callable(builder):
        with user_code(f"model builder {spec.path!r}"):
            module = builder()
    else:
        raise ModelError(
            f"model {spec.path!r} is a {type(builder).__name__}; expected a function or class that builds it"
        )
    if spec.weights and isinstance(module, torch.nn.Module):
        _put_in(module, read_weights(Path(spec.weights), trust_pickle=spec.trust_pickle), spec)
    return module


def read_weights(path: Path, trust_pickle: bool = False) -> Mapping[str, torch.Tensor]:
    """A state dict from ``.safetensors`` or from what ``torch.save`` wrote.

    Raises:
        ModelError: The file does not exist, holds no state dict, or needs pickle and that was not allowed.
    """
    if not path.is_file():
        raise ModelError(f"weights {path}: there is no such file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0].strip()
        raise ModelError(
            f"weights {path} need pickle, which runs whatever code the file holds ({first_lines(reason)}); save them "
            "with torch.save(model.state_dict(), ...) or, if you trust where the file came from, set "
            "model.trust_pickle: true"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"weights {path} cannot be read: {first_lines(str(error))}") from error
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"weights {path} hold a {type(state).__name__}; expected a state dict of tensors by name")
    return state


def _safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError("safetensors", "torch", f"to read {path}") from error
    try:
        loaded: Mapping[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"weights {path} cannot be read: {error}") from error
    return loaded


def _put_in(module: torch.nn.Module, state: Mapping[str, torch.Tensor], spec: ModelSpec) -> None:
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise ModelError(f"weights {spec.weights} do not fit the model that {spec.path!r} builds: {error}") from error


# ------------------------------------------------------------------------------------------------------ example inputs


def _given_examples(spec: ModelSpec) -> list[Any]:
    given = spec.example_inputs
    if given is None:
        return []
    if isinstance(given, str):
        given = import_object(given, "model.example_inputs")
        if callable(given):
            with user_code(f"example_inputs {spec.example_inputs!r}"):
                given = given()
    if isinstance(given, Mapping) and all(isinstance(value, Mapping) for value in given.values()):
        return [{name: _described(name, value) for name, value in given.items()}]
    return [to_arrays(given) if not isinstance(given, list | tuple) else tuple(to_arrays(value) for value in given)]


def _described(name: str, value: Mapping[str, Any]) -> NDArray[Any]:
    dtype = str(value.get("dtype", "float32"))
    shape = value.get("shape")
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ModelError(f"model.example_inputs.{name}.shape: {shape!r} is no list of positive sizes")
    try:
        return np.zeros(tuple(shape), np.dtype(dtype))
    except TypeError as error:
        raise ModelError(f"model.example_inputs.{name}.dtype: {dtype!r} is no dtype of NumPy") from error


def _described_axes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Dynamic axes that the description of the example inputs names itself."""
    given = spec.example_inputs if isinstance(spec.example_inputs, Mapping) else {}
    described = {name: value for name, value in given.items() if isinstance(value, Mapping) and "dynamic" in value}
    return {name: tuple(int(axis) for axis in value["dynamic"]) for name, value in described.items()}


def _at_least_two(array: NDArray[Any]) -> torch.Tensor:
    array = np.asarray(array)
    if array.ndim and array.shape[0] < _SMALLEST_BATCH:
        array = np.repeat(array, _SMALLEST_BATCH, axis=0)
    return to_tensor(np.array(array))


def _dynamic_axes(names: Sequence[str], batches: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """The batch, what differs between batches, and every axis of integers: tokens come in sequences of any length."""
    out = {}
    for name in names:
        shapes = [np.shape(batch[name]) for batch in batches if name in batch]
        whole = np.asarray(batches[0][name]).dtype.kind in "iub"
        out[name] = tuple(
            axis
            for axis in range(len(shapes[0]))
            if axis == 0 or whole or len({shape[axis] for shape in shapes if len(shape) > axis}) > 1
        )
    return out
