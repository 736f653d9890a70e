"""Which files beside an ONNX model hold its weights, told without reading the weights (or importing ``onnx``)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

_Tree: TypeAlias = Mapping[int, "_Tree | str"]

_TENSOR: dict[int, _Tree | str] = {13: {1: "key", 2: "value"}}
_GRAPH: dict[int, _Tree | str] = {5: _TENSOR}
_GRAPH[1] = {5: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH}}
_MODEL: dict[int, _Tree | str] = {7: _GRAPH}
"""Field numbers of ``onnx.proto`` on the way to ``external_data``: tensors of a graph and of its nodes' attributes."""


def external_locations(path: Path) -> tuple[str, ...]:
    """The locations that the tensors of a model file give, relative to its folder, sorted; none if it is no model."""
    found: set[str] = set()
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return ()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            try:
                key = ""
                for name, value in _texts(data, 0, len(data), _MODEL):
                    if name == "key":
                        key = value
                    elif key == "location":
                        found.add(value)
            except (IndexError, ValueError, RecursionError):  # not ONNX, or torn; who loads it says so
                return ()
    return tuple(sorted(found))


def _texts(data: mmap.mmap, start: int, end: int, wanted: _Tree) -> Iterator[tuple[str, str]]:
    """The wanted texts of a protobuf message in ``data[start:end]``; everything else is passed over, not read."""
    while start < end:
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == 0:
            _, start = _varint(data, start)
        elif kind in (1, 5):
            start += 8 if kind == 1 else 4
        elif kind == 2:
            length, start = _varint(data, start)
            if start + length > end:
                raise ValueError("a field is longer than its message")
            inside = wanted.get(tag >> 3)
            if isinstance(inside, str):
                yield inside, data[start : start + length].decode()
            elif inside is not None:
                yield from _texts(data, start, start + length, inside)
            start += length
        else:
            raise ValueError(f"no wire type {kind}")


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
    raise ValueError("a number of more than ten bytes")
