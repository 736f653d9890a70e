"""Weights outside of protobuf, in mapped files that the processes of a node share.

A protobuf message keeps a copy of every weight in the process that has parsed it, and each copy of a model one more. A
*light* model refers to its larger weights in files of one folder of this node instead. ONNX Runtime maps them, so does
``values_of``; the pages are in memory once, however many ranks use them, and can be dropped at any time, since they
have a file behind them. What ONNX Runtime repacks for its kernels is still its own in each process.
"""

from __future__ import annotations

import hashlib
import math
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from distune.backends.node_folder import shared_folder
from distune.backends.onnxruntime.weight_files import (
    WeightFile,
    is_ours,
    open_files,
    opened,
    release,
    undisturbed,
)
from distune.errors import ModelError

LIGHT_BYTES = 1 << 16
"""Weights of fewer bytes, and vectors (biases, scales), stay in the graph: ONNX Runtime's quantizer reads them."""

WORTH_BYTES = 4 << 20
"""Models with fewer bytes in larger weights stay whole."""

_SHARED_BYTES = 1 << 20
"""Weights of a trial from this size on have a file each, which other processes find; the rest have one together."""

_PAGE = 4096
"""Each weight in a file begins on a page of its own: mapping it brings nothing of its neighbours into memory."""

_REPACKED = frozenset(
    {
        *("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "ConvTranspose", "FusedConv"),
        *("LSTM", "GRU", "Attention"),
        *("QLinearMatMul", "QLinearConv", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"),
        *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention", "MatMulNBits"),
    }
)
"""Op types whose weights ONNX Runtime rearranges when it loads a model: their file is read once."""

_PLAIN_TYPES = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16),
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16),
        *(TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64),
    }
)
"""Element types whose raw bytes NumPy reads as they are: no two elements in one byte."""


def is_light(tensor: TensorProto) -> bool:
    """Whether the bytes of ``tensor`` are outside of it."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def reference(tensor: TensorProto) -> tuple[str, int, int]:
    """File, first byte and number of bytes of a tensor whose bytes are outside of it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries.get("length", _size(tensor)))


def content(tensor: TensorProto) -> bytes | memoryview:
    """The bytes of a constant, wherever they are, without a copy where they are mapped.

    Raises:
        ModelError: The model that the tensor comes from is gone, or has never been in memory.
    """
    if not is_light(tensor):
        inside: bytes = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
        return inside
    name, offset, length = reference(tensor)
    if name not in open_files:
        raise ModelError(f"the weight {tensor.name!r} is in {name}, which is not open; load the model as a whole")
    return open_files[name].content[offset : offset + length]


def values_of(tensor: TensorProto) -> NDArray[Any]:
    """The values of a constant, wherever they are; to be read only. Use it in place of ``numpy_helper.to_array``."""
    if not is_light(tensor):
        inside: NDArray[Any] = numpy_helper.to_array(tensor)
        return inside
    return np.frombuffer(content(tensor), _dtype(tensor)).reshape(tuple(tensor.dims))


def complete_tensor(tensor: TensorProto) -> TensorProto:
    """``tensor``, or a copy that has its bytes inside."""
    if not is_light(tensor):
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes(content(tensor)))


def complete(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model``, or a copy that has its weights inside; for what leaves the process."""
    if not any(is_light(tensor) for tensor in model.graph.initializer):
        return model
    return with_initializers(model, [complete_tensor(tensor) for tensor in model.graph.initializer])


def with_initializers(model: onnx.ModelProto, initializers: Sequence[TensorProto]) -> onnx.ModelProto:
    """A copy of ``model`` with other constants; those it has are not copied."""
    out = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _set_field(out, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set_field(out.graph, field.name, value)
    out.graph.initializer.extend(initializers)
    return out


class LightModel:
    """A light copy of a model; its files stay at least as long as this object.

    Where it is not worth it, ``proto`` has all its weights inside.

    Args:
        model: Weights that are in shared files already stay there.
        shared: Other processes will have these weights too: one file for all of them, found by its content, and none
            for weights that an open file has. Without it only large weights that ONNX Runtime uses as they are
            become such files.

    Attributes:
        proto: The light copy, or ``model`` itself.
        folder: Where the files are that ``proto`` refers to; empty where there are none.
    """

    def __init__(self, model: onnx.ModelProto, shared: bool = False) -> None:
        with undisturbed():
            self.proto = _lightened(model, shared)
            names = {reference(tensor)[0] for tensor in self.proto.graph.initializer if is_light(tensor)}
            for name in names:
                open_files[name].users += 1
            self._finalizer = weakref.finalize(self, release, tuple(names))
        self.folder = str(shared_folder()) if names else ""

    def close(self) -> None:
        """Let go of the files. May be called twice."""
        self._finalizer()


def _lightened(model: onnx.ModelProto, shared: bool) -> onnx.ModelProto:
    outside = [tensor for tensor in model.graph.initializer if not _is_settled(tensor)]
    heavy = [tensor for tensor in outside if _is_heavy(tensor)]
    changed: dict[str, TensorProto] = {}
    if sum(map(_size, heavy)) >= WORTH_BYTES:
        for together, tensors in _groups(model, heavy, shared):
            changed.update(_moved(tensors, together))
    changed.update({t.name: complete_tensor(t) for t in outside if is_light(t) and t.name not in changed})
    if not changed:
        return model
    return with_initializers(model, [changed.get(tensor.name, tensor) for tensor in model.graph.initializer])


@contextmanager
def adopted(model: onnx.ModelProto, folder: Path) -> Iterator[onnx.ModelProto]:
    """``model`` as read from a file in ``folder``, with its external data readable where they are, not read.

    References to files of light models stay as they are. Only inside the context: make a ``LightModel`` of it there.

    Raises:
        ModelError: External data are missing or too short.
    """
    names: dict[str, str] = {}
    try:
        for tensor in filter(is_light, model.graph.initializer):
            location, offset, length = reference(tensor)
            if is_ours(location) and location in open_files:
                continue
            if location not in names:
                path = folder / location
                if os.path.isabs(location) or ".." in Path(location).parts or not path.is_file():
                    raise ModelError(
                        f"the model keeps the weight {tensor.name!r} in {location!r}, a file of external data that has "
                        f"to be in {folder} and is not"
                    )
                names[location] = f"adopted-{uuid.uuid4().hex}"
                open_files[names[location]] = WeightFile(path, names[location])
            if offset + length > len(open_files[names[location]].content):
                raise ModelError(f"{folder / location} ends before the weight {tensor.name!r} of the model does")
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = names[location]
        yield model
    finally:
        for name in names.values():
            open_files.pop(name, None)


def _is_settled(tensor: TensorProto) -> bool:
    """Whether the bytes are in a file of ours."""
    return is_light(tensor) and is_ours(reference(tensor)[0])


def _is_heavy(tensor: TensorProto) -> bool:
    has_bytes = is_light(tensor) or tensor.HasField("raw_data")
    return len(tensor.dims) > 1 and has_bytes and tensor.data_type in _PLAIN_TYPES and _size(tensor) >= LIGHT_BYTES


def _size(tensor: TensorProto) -> int:
    return int(math.prod(tensor.dims) * _dtype(tensor).itemsize)


def _groups(
    model: onnx.ModelProto, heavy: Sequence[TensorProto], shared: bool
) -> Iterator[tuple[bool, list[TensorProto]]]:
    """Which weights go into one file, and whether other processes are to find it."""
    if shared:
        yield True, list(heavy)
        return
    repacked = {name for node in model.graph.node if node.op_type in _REPACKED for name in node.input}
    alone = [tensor for tensor in heavy if _size(tensor) >= _SHARED_BYTES and tensor.name not in repacked]
    yield from ((True, [tensor]) for tensor in alone)
    names = {tensor.name for tensor in alone}
    if rest := [tensor for tensor in heavy if tensor.name not in names]:
        yield False, rest


def _moved(tensors: Sequence[TensorProto], shared: bool) -> dict[str, TensorProto]:
    """References to ``tensors`` in files, by name; what is in no file yet goes into a new one."""
    keys = {tensor.name: _digest(tensor) if shared else tensor.name for tensor in tensors}
    places: dict[str, tuple[WeightFile, int]] = {}
    if shared:
        places = {key: (file, offset) for file in open_files.values() for key, offset in file.offsets.items()}
    new = {keys[tensor.name]: tensor for tensor in tensors if keys[tensor.name] not in places}  # equal ones once
    if new:
        offsets = _offsets(new)
        name = hashlib.blake2b(" ".join(offsets).encode(), digest_size=16).hexdigest() if shared else uuid.uuid4().hex
        file = opened(name, partial(_write, new, offsets))
        if shared:
            file.offsets.update(offsets)
        places.update({key: (file, offset) for key, offset in offsets.items()})
    return {tensor.name: _referring(tensor, *places[keys[tensor.name]]) for tensor in tensors}


def _offsets(tensors: Mapping[str, TensorProto]) -> dict[str, int]:
    """Where each begins in a file of them, by key: the same in every process."""
    offsets, end = {}, 0
    for key in sorted(tensors):
        offsets[key] = end
        end += _size(tensors[key]) + -_size(tensors[key]) % _PAGE
    return offsets


def _referring(tensor: TensorProto, file: WeightFile, offset: int) -> TensorProto:
    """``tensor`` with its bytes in ``file``."""
    light = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    light.data_location = TensorProto.EXTERNAL
    for entry, value in (("location", file.location), ("offset", offset), ("length", _size(tensor))):
        light.external_data.add(key=entry, value=str(value))
    return light


def _write(tensors: Mapping[str, TensorProto], offsets: Mapping[str, int], file: BinaryIO) -> None:
    for key, tensor in tensors.items():
        file.seek(offsets[key])
        file.write(content(tensor))


def _digest(tensor: TensorProto) -> str:
    return hashlib.blake2b(content(tensor), digest_size=16).hexdigest()


def _dtype(tensor: TensorProto) -> np.dtype[Any]:
    dtype: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return dtype


def _set_field(message: Any, name: str, value: Any) -> None:
    if hasattr(value, "extend"):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)
