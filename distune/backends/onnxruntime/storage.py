"""Models as files: one file, or a graph with its weights beside it (external data).

A protobuf message ends at 2 GB. In memory a model may be larger; whatever has to write or read it as a message works
on its skeleton, the graph with references in place of the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

MESSAGE_LIMIT = 2**31 - 2**24
"""Bytes up to which a model is handled as one message; what is added to a graph in passing has room above."""

GRAPH_FILE, DATA_FILE = "model.onnx", "model.onnx.data"

_PAGE = 4096
_SMALL = 1024
"""Weights of fewer bytes stay in the graph: shapes and scales are wanted there."""


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all constant tensors, without touching them."""
    total = 0
    for tensor in model.graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        total += count * max(1, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return total


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the model is too large for one protobuf message."""
    return weight_bytes(model) > MESSAGE_LIMIT


def stored_size(model: onnx.ModelProto) -> int:
    """Bytes of the model as a file, external data included."""
    if not is_large(model):
        return int(model.ByteSize())
    graph, chunks = split(model)
    return len(graph) + sum(len(chunk) for chunk in chunks)


def stored_files(model: onnx.ModelProto, external: bool) -> dict[str, bytes]:
    """Content by file name.

    Args:
        external: Keep the weights in a file of their own also where the model would fit into one.
    """
    if not external and not is_large(model):
        return {GRAPH_FILE: model.SerializeToString(deterministic=True)}
    graph, chunks = split(model)
    return {GRAPH_FILE: graph, DATA_FILE: b"".join(chunks)}


def write(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model with external data into ``folder``, weight by weight; returns the path of the graph."""
    graph, chunks = split(model)
    with (folder / DATA_FILE).open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
    path = folder / GRAPH_FILE
    path.write_bytes(graph)
    return path


def split(model: onnx.ModelProto) -> tuple[bytes, Iterator[bytes]]:
    """The graph with references to ``DATA_FILE``, and the content of that file piece by piece."""
    skeleton, moved = _skeleton(model)
    return skeleton.SerializeToString(deterministic=True), _content(moved)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """``onnx.shape_inference`` for models of any size."""
    if not is_large(model):
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    skeleton, _ = _skeleton(model)
    inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    return model


def external_files(path: Path) -> tuple[Path, ...]:
    """The files beside ``path`` that hold its weights; none where it holds them itself."""
    model = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / name for name in sorted(names))


def digest(files: tuple[Path, ...]) -> str:
    """SHA-256 over the content of files, in their order."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                found.update(block)
    return found.hexdigest()


def _skeleton(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy of ``model`` without the bytes of its larger weights, and these weights."""
    out = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        _set_field(out, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set_field(out.graph, field.name, value)
    moved: list[onnx.TensorProto] = []
    offset = 0
    for tensor in model.graph.initializer:
        length = len(tensor.raw_data)
        if length < _SMALL:
            out.graph.initializer.add().CopyFrom(tensor)
            continue
        light = out.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        light.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(length))):
            light.external_data.add(key=key, value=text)
        moved.append(tensor)
        offset += length + -length % _PAGE
    return out, moved


def _set_field(message: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend"):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def _content(tensors: list[onnx.TensorProto]) -> Iterator[bytes]:
    """The bytes of each weight, filled up to whole pages, so that a runtime may map them."""
    for tensor in tensors:
        data = tensor.raw_data
        yield data
        yield bytes(-len(data) % _PAGE)
