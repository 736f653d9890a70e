"""Models as files: one file, or a graph with its weights beside it (external data).

A protobuf message ends at 2 GB. In memory a model may be larger; whatever has to write or read it as a message works
on its skeleton, the graph with references in place of the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from distune.backends.onnxruntime.external import external_locations
from distune.backends.onnxruntime.shared import complete, content, is_light, reference, with_initializers
from distune.errors import ModelError

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
        return _message_size(model)
    graph, chunks = split(model)
    return len(graph) + sum(len(chunk) for chunk in chunks)


def stored_files(model: onnx.ModelProto, external: bool) -> dict[str, bytes]:
    """Content by file name.

    Args:
        external: Keep the weights in a file of their own also where the model would fit into one.
    """
    if not external and not is_large(model):
        return {GRAPH_FILE: complete(model).SerializeToString(deterministic=True)}
    graph, chunks = split(model)
    data = b"".join(chunks)
    return {GRAPH_FILE: graph, DATA_FILE: data} if data else {GRAPH_FILE: graph}


def split(model: onnx.ModelProto) -> tuple[bytes, Iterator[bytes | memoryview]]:
    """The graph with references to ``DATA_FILE``, and the content of that file piece by piece.

    Weights that are outside of ``model`` are read where they are.
    """
    skeleton, moved = _skeleton(model)
    return skeleton.SerializeToString(deterministic=True), _content(moved)


def with_data_file(graph: bytes, name: str) -> bytes:
    """The graph of ``stored_files`` for a folder where the content of ``DATA_FILE`` is called ``name``."""
    skeleton = onnx.load_model_from_string(graph)
    for tensor in filter(is_light, skeleton.graph.initializer):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    renamed: bytes = skeleton.SerializeToString(deterministic=True)
    return renamed


def assembled(files: Mapping[str, bytes]) -> onnx.ModelProto:
    """The model of ``stored_files`` with all its weights inside.

    Raises:
        ModelError: It is too large for that.
    """
    model = onnx.load_model_from_string(files[GRAPH_FILE])
    size = sum(map(len, files.values()))
    if size > MESSAGE_LIMIT:
        raise ModelError(
            f"the model has {size:,} bytes, more than one onnx.ModelProto may hold ({MESSAGE_LIMIT:,}); write it to "
            "files with .save(path) and open them by their path"
        )
    for tensor in filter(is_light, model.graph.initializer):
        _, offset, length = reference(tensor)
        tensor.raw_data = files[DATA_FILE][offset : offset + length]
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return model


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
    return tuple(path.parent / name for name in external_locations(path))


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
    constants: list[onnx.TensorProto] = []
    moved: list[onnx.TensorProto] = []
    offset = 0
    for tensor in model.graph.initializer:
        length = reference(tensor)[2] if is_light(tensor) else len(tensor.raw_data)
        if length < _SMALL:
            constants.append(tensor)
            continue
        light = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        light.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(length))):
            light.external_data.add(key=key, value=text)
        constants.append(light)
        moved.append(tensor)
        offset += length + -length % _PAGE
    return with_initializers(model, constants), moved


def _content(tensors: list[onnx.TensorProto]) -> Iterator[bytes | memoryview]:
    """The bytes of each weight, filled up to whole pages, so that a runtime may map them."""
    for tensor in tensors:
        data = content(tensor)
        yield data
        yield bytes(-len(data) % _PAGE)


def _message_size(model: onnx.ModelProto) -> int:
    """Bytes of the model as one message, with all weights inside, without putting them there."""
    graph = grown = model.graph.ByteSize()
    for tensor in model.graph.initializer:
        if is_light(tensor):
            length = reference(tensor)[2]
            bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims).ByteSize()
            grown += _field_size(bare + _field_size(length)) - _field_size(tensor.ByteSize())
    return int(model.ByteSize() - _field_size(graph) + _field_size(grown))


def _field_size(length: int) -> int:
    """Bytes of a field of so many bytes: its tag (one byte, for the fields that matter here), its length, itself."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length
