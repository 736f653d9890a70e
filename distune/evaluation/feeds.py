"""From a batch of data to a feed of the model: arrays under the model's input names, in its dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.backends.base import Feed, InputInfo
from distune.data.batch import Inputs, to_array
from distune.data.loader import DataSource
from distune.errors import DataError


def to_feed(inputs: Inputs, infos: Sequence[InputInfo]) -> Feed:
    """The feed of one batch.

    A value-preserving cast is made where the model wants another dtype: to a wider type, float64 to float32, and
    between integers where every value fits. Anything else would change the numbers and is an error.

    Args:
        inputs: One array (for a model with one input), a tuple in the order of the model's inputs, or arrays by input
            name; axis 0 is the batch.
        infos: The model's inputs.

    Raises:
        DataError: A missing or unknown input, another dtype, rank or static dimension: says which and what is expected.
    """
    named = _by_name(inputs, infos)
    return {info.name: _fitting(to_array(named[info.name]), info) for info in infos}


def first_feed(source: DataSource, infos: Sequence[InputInfo], batch_size: int) -> Feed:
    """A feed of exactly the first ``batch_size`` samples of a source, for measuring latency.

    Where the source has fewer samples they are repeated: latency needs the size, not the variety.

    Raises:
        DataError: As ``to_feed``; or the batches of the source cannot be joined.
    """
    batches = list(source.head(batch_size))
    if not batches:
        raise DataError("the dataloader gives no batch to measure latency with")
    feeds = [to_feed(batch.inputs, [_any_batch(info) for info in infos]) for batch in batches]
    have = sum(batch.size for batch in batches)
    joined: dict[str, NDArray[Any]] = {}
    for info in infos:
        parts = [feed[info.name] for feed in feeds]
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = [part.shape for part in parts]
            raise DataError(f"input {info.name!r}: batches of shapes {shapes} cannot be joined to {batch_size} samples")
        joined[info.name] = np.concatenate(parts)[np.arange(batch_size) % have]
    return to_feed(joined, infos)


def zeros_feed(infos: Sequence[InputInfo], batch_size: int) -> Feed:
    """Zeros for every input, where there are no data; axis 0 takes ``batch_size`` where it is dynamic.

    Raises:
        DataError: Another axis is dynamic: only data can tell its size.
    """
    return {info.name: np.zeros(_sizes(info, batch_size), np.dtype(info.dtype)) for info in infos}


def _sizes(info: InputInfo, batch_size: int) -> list[int]:
    shape: list[int] = []
    for axis, size in enumerate(info.shape):
        if isinstance(size, int):
            shape.append(size)
        elif axis == 0:
            shape.append(batch_size)
        else:
            raise DataError(
                f"latency cannot be measured without data: axis {axis} ({size or 'unnamed'}) of input {info.name!r} is "
                "dynamic; give evaluation.accuracy.dataloader or quantization.calibration.dataloader"
            )
    return shape


def _any_batch(info: InputInfo) -> InputInfo:
    return InputInfo(info.name, info.dtype, (None, *info.shape[1:])) if info.shape else info


def _by_name(inputs: Inputs, infos: Sequence[InputInfo]) -> Mapping[str, Any]:
    names = [info.name for info in infos]
    if isinstance(inputs, Mapping):
        missing = [name for name in names if name not in inputs]
        unknown = [name for name in inputs if name not in names]
        if missing or unknown:
            raise DataError(
                f"the data name the inputs {', '.join(inputs)} but the model has {', '.join(names)}"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (f"; not of the model: {', '.join(unknown)}" if unknown else "")
            )
        return inputs
    values: Sequence[Any] = inputs if isinstance(inputs, tuple | list) else (inputs,)
    if len(values) != len(names):
        raise DataError(
            f"the data give {len(values)} input{'s' * (len(values) != 1)} but the model has {len(names)}: "
            f"{', '.join(map(repr, names))}"
        )
    return dict(zip(names, values, strict=True))


def _fitting(array: NDArray[Any], info: InputInfo) -> NDArray[Any]:
    if info.shape:
        fits = array.ndim == len(info.shape) and all(
            not isinstance(want, int) or want == have for want, have in zip(info.shape, array.shape, strict=True)
        )
        if not fits:
            raise DataError(f"{_mismatch(array, info)}{_hint(array, info)}")
    return np.ascontiguousarray(_cast(array, info))


def _cast(array: NDArray[Any], info: InputInfo) -> NDArray[Any]:
    try:
        wanted = np.dtype(info.dtype)
    except TypeError:  # a dtype that NumPy has not, e.g. bfloat16: the backend must judge
        return array
    if array.dtype == wanted:
        return array
    if np.can_cast(array.dtype, wanted, "safe") or (array.dtype == np.float64 and wanted == np.float32):
        return array.astype(wanted)
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if array.size == 0 or (limits.min <= array.min() and array.max() <= limits.max):
            return array.astype(wanted)
        raise DataError(f"{_mismatch(array, info)}: its values reach from {array.min()} to {array.max()}")
    raise DataError(f"{_mismatch(array, info)}: convert it with the transform Cast if that is meant")


def _mismatch(array: NDArray[Any], info: InputInfo) -> str:
    shape = ", ".join(str(size) if size is not None else "?" for size in info.shape)
    return (
        f"input {info.name!r}: the data give {array.dtype}{list(array.shape)}, the model expects {info.dtype}[{shape}]"
    )


def _hint(array: NDArray[Any], info: InputInfo) -> str:
    rest = array.shape[1:] == info.shape[1:]
    if array.ndim == len(info.shape) and isinstance(info.shape[0], int) and rest:
        return f": the model's batch is fixed; set batch_size {info.shape[0]} and last_batch discard"
    if array.ndim == len(info.shape) - 1:
        return ": one axis is missing (the batch, or the channels)"
    if array.ndim == 4 and len(info.shape) == 4 and array.shape[3] == info.shape[1]:
        return ": channels come last in the data and first in the model; add the transform Transpose, perm [2, 0, 1]"
    return ""
