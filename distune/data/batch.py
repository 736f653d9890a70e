"""What a data source delivers: batches of arrays, and how samples and foreign tensors become them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError

Inputs = NDArray[Any] | tuple[NDArray[Any], ...] | Mapping[str, NDArray[Any]]
"""Model inputs of one batch: one array, several in the model's order, or by input name; axis 0 is the batch."""

Labels = NDArray[Any] | tuple[NDArray[Any], ...] | None
"""Labels of one batch (axis 0), or ``None`` where the data carry none."""


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        index: Position in the source's order of batches, from 0.
        size: Samples in it.
    """

    index: int
    inputs: Inputs
    labels: Labels
    size: int

    def first(self, samples: int) -> Batch:
        """The batch cut down to its first ``samples`` samples."""
        if samples >= self.size:
            return self
        return Batch(self.index, take(self.inputs, slice(samples)), take(self.labels, slice(samples)), samples)


def take(values: Any, rows: slice | NDArray[np.intp]) -> Any:
    """Rows of an array, or of every array of a tuple or mapping; ``None`` stays ``None``."""
    return None if values is None else map_arrays(lambda array: array[rows], values)


def map_arrays(function: Callable[[NDArray[Any]], Any], values: Any) -> Any:
    """Apply ``function`` to an array, or to every array of a tuple or mapping."""
    if isinstance(values, Mapping):
        return {name: function(array) for name, array in values.items()}
    if isinstance(values, tuple):
        return tuple(function(array) for array in values)
    return function(values)


def arrays_of(values: Any) -> list[NDArray[Any]]:
    """All arrays of a structure, in order."""
    found: list[NDArray[Any]] = []
    if values is not None:
        map_arrays(found.append, values)
    return found


def to_array(value: Any) -> NDArray[Any]:
    """An ndarray of an array, a number, a nested list, a Pillow image, or a tensor that has ``numpy()``.

    Raises:
        DataError: It has no regular shape or holds objects.
    """
    if isinstance(value, np.ndarray):
        array = value
    else:
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            value = value.detach().cpu()
        if not hasattr(value, "__array__") and hasattr(value, "numpy"):
            value = value.numpy()
        try:
            array = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise DataError(f"a {type(value).__name__} of the data cannot become an array: {error}") from error
    if array.dtype.hasobject:
        raise DataError(f"a {type(value).__name__} of the data becomes an array of Python objects, not of numbers")
    return array


def to_arrays(values: Any) -> Any:
    """``to_array`` on an input or label structure.

    A list or tuple is several arrays where its members have at least one dimension, else one array of numbers.
    """
    if isinstance(values, Mapping):
        return {str(name): to_array(value) for name, value in values.items()}
    if isinstance(values, list | tuple) and values and all(getattr(member, "ndim", 0) > 0 for member in values):
        return tuple(to_array(member) for member in values)
    return to_array(values)


def split_pair(item: Any) -> tuple[Any, Any]:
    """``(inputs, labels)`` of what a dataset or dataloader gave.

    A pair is taken as it is. A mapping or a bare array or tensor is inputs alone; a mapping's ``labels`` (or
    ``label``) entry is split off.

    Raises:
        DataError: Anything else.
    """
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, Mapping):
        for key in ("labels", "label"):
            if key in item:
                return {name: value for name, value in item.items() if name != key}, item[key]
        return item, None
    if hasattr(item, "shape"):
        return item, None
    what = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
    raise DataError(f"the data give a {what} where a pair (input, label) is expected")


def collate(pairs: Sequence[tuple[Any, Any]], positions: Sequence[int]) -> tuple[Inputs, Labels]:
    """Stack samples into a batch.

    Args:
        pairs: ``(sample, label)`` each.
        positions: Index of each sample in its dataset, for messages.

    Raises:
        DataError: Two samples differ in structure or shape; says which and how.
    """
    inputs = _stack([to_arrays(sample) for sample, _ in pairs], positions, "input")
    labels = [label for _, label in pairs]
    if all(label is None for label in labels):
        return inputs, None
    return inputs, _stack([to_arrays(label) for label in labels], positions, "label")


def _stack(values: Sequence[Any], positions: Sequence[int], what: str) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        for value, position in zip(values, positions, strict=True):
            if not isinstance(value, Mapping) or value.keys() != first.keys():
                got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
                raise DataError(f"sample {position} has {what}s {got} but sample {positions[0]} has {sorted(first)}")
        return {name: _stack([v[name] for v in values], positions, f"{what} {name!r}") for name in first}
    if isinstance(first, tuple):
        for value, position in zip(values, positions, strict=True):
            if not isinstance(value, tuple) or len(value) != len(first):
                count = len(value) if isinstance(value, tuple) else 1
                raise DataError(f"sample {position} has {count} {what}s but sample {positions[0]} has {len(first)}")
        return tuple(_stack([v[i] for v in values], positions, f"{what} {i}") for i in range(len(first)))
    for value, position in zip(values, positions, strict=True):
        shape = getattr(value, "shape", None)
        if shape != first.shape:
            raise DataError(
                f"samples do not stack into a batch: {what} of sample {position} has shape {shape}, that of sample "
                f"{positions[0]} has {first.shape}; crop, resize or pad them, or use batch_size 1"
            )
    return np.stack(values)


def make_batch(index: int, item: Any) -> Batch:
    """A batch of what a live dataloader gave; a label without dimensions belongs to a batch of one.

    Raises:
        DataError: Inputs and labels do not have the same number of samples, or have none.
    """
    raw_inputs, raw_labels = split_pair(item)
    inputs = to_arrays(raw_inputs)
    labels = None if raw_labels is None else to_arrays(raw_labels)
    shapes = [array.shape for array in arrays_of(inputs)]
    if not shapes or any(len(shape) == 0 for shape in shapes):
        raise DataError(f"batch {index} of the dataloader has inputs of shapes {shapes}: axis 0 must be the batch")
    size = shapes[0][0]
    if labels is not None and size == 1:
        labels = map_arrays(np.atleast_1d, labels)
    label_shapes = [array.shape for array in arrays_of(labels)]
    if any(not shape or shape[0] != size for shape in [*shapes, *label_shapes]):
        raise DataError(
            f"batch {index} of the dataloader has inputs of shapes {shapes} and labels of shapes {label_shapes}: "
            "axis 0 must be the same everywhere"
        )
    if size == 0:
        raise DataError(f"batch {index} of the dataloader has no samples (inputs of shapes {shapes}); leave it out")
    return Batch(index, inputs, labels, size)
