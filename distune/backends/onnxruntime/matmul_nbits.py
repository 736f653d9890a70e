"""ONNX Runtime's ``MatMulNBits``: what the installed one runs, and how a grouped weight is stored for it.

A column of the weight is cut into blocks of a power of two; each has a scale and, where the middle level does not
serve, a zero point. Groups that are no such block are stored as several blocks of equal scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, NotImplemented

from distune.backends.weight_only.grouped import BITS, GroupedWeight
from distune.errors import TrialError

DOMAIN = "com.microsoft"
ACCURACY_LEVELS = (0, 1, 2, 3, 4)
"""0: as the weight's type; 1: fp32; 2: fp16; 3: bf16; 4: inputs are rounded to int8, which is faster."""

ZeroPoints = Literal["none", "integer", "real"]

_BLOCKS = (16, 32, 64, 128, 256, 512, 1024)
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Stored:
    """The inputs of a ``MatMulNBits`` node.

    Attributes:
        packed: uint8 [N, blocks, bytes of a block].
        scales: float32 [N, blocks].
        zero_points: uint8 [N, bytes] or float32 [N, blocks]; ``None``: the middle level everywhere.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | NDArray[np.float32] | None
    bits: int
    block: int
    channels: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the three arrays."""
        zero_points = 0 if self.zero_points is None else self.zero_points.nbytes
        return int(self.packed.nbytes + self.scales.nbytes + zero_points)


def stored(weight: GroupedWeight) -> Stored:
    """``weight`` in the layout of ``MatMulNBits``; a width that it does not run in the next wider one that it does.

    Raises:
        TrialError: The installed ONNX Runtime runs no layout that holds this weight.
    """
    kind = _zero_point_kind(weight)
    bits = next((bits for bits in range(weight.format.bits, 9) if runs(bits, 32, kind)), 0)
    if not bits:
        raise TrialError(
            f"MatMulNBits of ONNX Runtime {ort.__version__} runs no width from {weight.format.bits} bits on with "
            f"{kind} zero points"
        )
    block = _block(weight, bits, kind)
    channels, outputs = weight.integers.shape
    group = weight.format.group(channels)
    blocks = -(-channels // block)
    of_block = np.minimum(np.arange(blocks) * block // group, len(weight.scales) - 1)
    lift = 2 ** (bits - 1) - 2 ** (weight.format.bits - 1) if kind == "none" else 0
    padded = np.zeros((outputs, blocks * block), np.uint8)
    padded[:, :channels] = weight.integers.T + lift
    return Stored(
        pack(padded, bits).reshape(outputs, blocks, block * bits // 8),
        np.ascontiguousarray(weight.scales[of_block].T),
        _stored_zero_points(weight.zero_points[of_block].T, bits, kind),
        bits,
        block,
        channels,
    )


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers [rows, n] as bytes [rows, ceil(n * bits / 8)], the first one in the lowest bits."""
    if bits == 8:
        return np.ascontiguousarray(values)
    per_byte = 8 // bits
    rows, count = values.shape
    padded = np.zeros((rows, -(-count // per_byte) * per_byte), np.uint8)
    padded[:, :count] = values
    out = padded[:, ::per_byte].copy()
    for position in range(1, per_byte):
        out |= padded[:, position::per_byte] << np.uint8(bits * position)
    return np.asarray(out, np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Inverse of ``pack``: integers [rows, count]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return np.asarray(values.reshape(len(packed), -1)[:, :count], np.uint8)


def node(
    stored_weight: Stored, name: str, source: str, output: str, prefix: str, accuracy_level: int = 0
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """The node and its constants.

    Args:
        prefix: Beginning of the constants' names.
    """
    arrays = {"packed": stored_weight.packed, "scales": stored_weight.scales}
    if stored_weight.zero_points is not None:
        arrays["zero_points"] = stored_weight.zero_points
    constants = [numpy_helper.from_array(array, f"{prefix}_{role}") for role, array in arrays.items()]
    attributes = {"accuracy_level": accuracy_level} if accuracy_level else {}
    made = helper.make_node(
        "MatMulNBits",
        [source, *(constant.name for constant in constants)],
        [output],
        name,
        domain=DOMAIN,
        K=stored_weight.channels,
        N=len(stored_weight.packed),
        bits=stored_weight.bits,
        block_size=stored_weight.block,
        **attributes,
    )
    return made, constants


def native_bits(kind: ZeroPoints = "none") -> tuple[int, ...]:
    """Widths that the installed ``MatMulNBits`` runs, found by running it."""
    return tuple(bits for bits in BITS if runs(bits, 32, kind))


@cache
def runs(bits: int, block: int, kind: ZeroPoints, accuracy_level: int = 0) -> bool:
    """Whether the installed ``MatMulNBits`` runs a combination and gives the right numbers."""
    if bits not in (2, 4, 8) and 8 % bits:
        return _runs_odd_width(bits, block)
    rng = np.random.default_rng(bits)
    channels, outputs = 2 * block, 4
    values = rng.integers(0, 2**bits, (outputs, channels)).astype(np.uint8)
    scales = rng.uniform(0.5, 1.5, (outputs, 2)).astype(np.float32)
    middle = np.full((outputs, 2), 2 ** (bits - 1), np.float32)
    zero_points: dict[str, tuple[NDArray[np.float32], NDArray[np.uint8] | NDArray[np.float32] | None]] = {}
    whole = rng.integers(0, 2**bits, (outputs, 2)).astype(np.uint8)
    real = rng.uniform(0, 2**bits - 1, (outputs, 2)).astype(np.float32)
    zero_points = {
        "none": (middle, None),
        "integer": (whole.astype(np.float32), pack(whole, bits)),
        "real": (real, real),
    }
    expected, given = zero_points[kind]
    packed = pack(values, bits).reshape(outputs, 2, -1)
    tried = Stored(packed, scales, given, bits, block, channels)
    weight = (values - np.repeat(expected, block, axis=1)) * np.repeat(scales, block, axis=1)
    inputs = rng.standard_normal((3, channels)).astype(np.float32)
    output = _run(tried, inputs, accuracy_level)
    reference = inputs @ weight.T
    allowed = 0.05 if accuracy_level == 4 else _TOLERANCE
    return output is not None and bool(np.abs(output - reference).max() <= allowed * np.abs(reference).max())


def _runs_odd_width(bits: int, block: int) -> bool:
    """Widths that fill no byte evenly: whether ONNX Runtime takes a node with them at all."""
    packed = np.zeros((4, 2, block * bits // 8), np.uint8)
    tried = Stored(packed, np.ones((4, 2), np.float32), None, bits, block, 2 * block)
    return _run(tried, np.zeros((3, 2 * block), np.float32), 0) is not None


def _run(tried: Stored, inputs: NDArray[np.float32], accuracy_level: int) -> NDArray[np.float32] | None:
    made, constants = node(tried, "probe", "x", "y", "w", accuracy_level)
    graph = helper.make_graph(
        [made],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(inputs.shape))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [len(inputs), len(tried.packed)])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        output: NDArray[np.float32] = session.run(None, {"x": inputs})[0]
    except (Fail, InvalidArgument, InvalidGraph, NotImplemented):
        return None
    return output


def _stored_zero_points(
    values: NDArray[np.float32], bits: int, kind: ZeroPoints
) -> NDArray[np.uint8] | NDArray[np.float32] | None:
    if kind == "none":
        return None
    return pack(values.astype(np.uint8), bits) if kind == "integer" else np.ascontiguousarray(values, np.float32)


def _zero_point_kind(weight: GroupedWeight) -> ZeroPoints:
    if weight.format.scheme == "sym":
        return "none"
    return "integer" if weight.has_whole_zero_points else "real"


def _block(weight: GroupedWeight, bits: int, kind: ZeroPoints) -> int:
    """The group itself where it is a block that runs, else the block of fewest bytes that keeps within a group."""
    channels = len(weight.integers)
    group = weight.format.group(channels)
    fitting = [b for b in _BLOCKS if (group == channels or group % b == 0) and runs(bits, b, kind)]
    if not fitting:
        raise TrialError(
            f"MatMulNBits cannot hold groups of {group} input channels: they must be a multiple of 16, or the whole row"
        )
    if group in fitting and group < channels:
        return group

    def size(block: int) -> int:
        return -(-channels // block) * (
            block * bits + 32 + (0 if kind == "none" else bits if kind == "integer" else 32)
        )

    return min(fitting, key=size)
