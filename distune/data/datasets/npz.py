"""Arrays of one NumPy ``.npz`` file."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.data.batch import Inputs, Labels
from distune.data.dataset import ArrayDataset, existing
from distune.data.registry import dataset_registry
from distune.errors import DataError

_REFERENCE = re.compile(r"\s*(?P<name>[^\[\]]+?)\s*(?:\[(?P<index>[-\d:,\s]*)\])?\s*")


@dataset_registry("Npz", "npz")
class Npz(ArrayDataset):
    """Samples along axis 0 of the arrays of an ``.npz`` file, read once.

    An array is referred to by its name, or by name and a NumPy slice as in ``tokens[:, :-1]`` (inputs) and
    ``tokens[:, 1:]`` (labels) of a language model.

    Args:
        path: The file.
        inputs: One array; a list in the order of the model's inputs; or arrays by model input name.
        label: One array, a list, or nothing for data without labels.
        slice: Rows to use as ``start:stop`` or ``start:stop:step``.
        limit: Rows to use at most, after ``slice``.

    Raises:
        DataError: No such file or array, an object array (it would need pickle), or unequal numbers of rows.
    """

    def __init__(
        self,
        path: str,
        inputs: str | Sequence[str] | Mapping[str, str],
        label: str | Sequence[str] | None = None,
        slice: str | None = None,
        limit: int | None = None,
    ) -> None:
        reader = _Reader(existing(path, "Npz file"), _rows(slice, limit))
        taken: Inputs
        if isinstance(inputs, str):
            taken = reader.array(inputs)
        elif isinstance(inputs, Mapping):
            taken = {name: reader.array(reference) for name, reference in inputs.items()}
        else:
            taken = tuple(reader.array(reference) for reference in inputs)
        labels: Labels = None
        if isinstance(label, str):
            labels = reader.array(label)
        elif label is not None:
            labels = tuple(reader.array(reference) for reference in label)
        super().__init__(taken, labels)


class _Reader:
    def __init__(self, path: Path, rows: slice) -> None:
        self._path = path
        self._rows = rows
        self._read: dict[str, NDArray[Any]] = {}
        try:
            self._file = np.load(path, allow_pickle=False)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"Npz: {path} is not an .npz file: {error}") from error
        if not hasattr(self._file, "files"):
            raise DataError(f"Npz: {path} holds one bare array; save it with numpy.savez under a name")

    def array(self, reference: str) -> NDArray[Any]:
        match = _REFERENCE.fullmatch(reference)
        name = match["name"] if match else reference
        if name not in self._file.files:
            raise DataError(f"Npz: no array {name!r} in {self._path}; it has: {', '.join(self._file.files)}")
        if name not in self._read:
            try:
                self._read[name] = self._file[name]
            except ValueError as error:
                raise DataError(
                    f"Npz: array {name!r} of {self._path} cannot be read without pickle: {error}"
                ) from error
        array = self._read[name]
        if match and match["index"]:
            array = np.ascontiguousarray(array[tuple(_index(part, reference) for part in match["index"].split(","))])
        if array.ndim == 0:
            raise DataError(f"Npz: array {name!r} of {self._path} is a single number: axis 0 must run over samples")
        return array[self._rows]


def _index(text: str, reference: str) -> slice:
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError as error:
        raise DataError(f"Npz: {reference!r} is not NAME or NAME[slice, ...]") from error
    if not 2 <= len(parts) <= 3:
        raise DataError(f"Npz: {reference!r} is not NAME or NAME[slice, ...]; an index must be a slice a:b")
    return slice(*parts)


def _rows(text: str | None, limit: int | None) -> slice:
    rows = _index(text, text) if text else slice(None)
    if limit is None:
        return rows
    if limit < 1:
        raise DataError(f"Npz: limit must be 1 or more, not {limit}")
    start, step = rows.start or 0, rows.step or 1
    if start < 0 or step < 1 or (rows.stop or 0) < 0:
        raise DataError("Npz: limit goes only with a slice that counts forward from the front")
    stop = start + limit * step
    return slice(start, stop if rows.stop is None else min(stop, rows.stop), step)
