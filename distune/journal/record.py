"""One line of the journal: its frame, its checksum, and JSON that keeps every float.

A line is ``{"v":1,"seq":7,"kind":"result","data":{...},"crc":"90ab12ef"}``: compact ASCII JSON in this key order. The
checksum is the CRC-32 of the line's bytes without the ``crc`` member, so that every flipped byte is noticed, also one
that JSON would read as the same value. Keys inside ``data`` keep their order (ops are in graph order). Every version of
the format keeps this frame, ``v`` first and ``crc`` last, so that an older distune can tell "newer" from "damaged".

JSON has no NaN or infinity. They are written as ``{"$float": "nan" | "inf" | "-inf"}``; to keep this unambiguous, a key
of the data that begins with ``$`` is written with one more ``$``. Tuples come back as lists, numpy scalars as Python
numbers.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Kind = Literal["header", "result", "decision", "note"]

KINDS: tuple[Kind, ...] = get_args(Kind)

VERSION = 1
"""Version of the journal format that this distune writes, and the newest that it reads."""

_CRC = re.compile(rb',"crc":"([0-9a-f]{8})"\}')
_CRC_LENGTH = len(b',"crc":"00000000"}')
LINE_START = b'{"v":'
"""How every line of every version begins."""

_MARKER = "$float"

_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class Record:
    """One journal record.

    Attributes:
        seq: Position in the journal; the header is 0.
        kind: ``header``, ``result`` (arrival order), ``decision`` (candidate order) or ``note``.
        data: Plain values.
        version: Format version of the line.
    """

    seq: int
    kind: Kind
    data: Mapping[str, Any]
    version: int = VERSION


class DamagedLine(ValueError):
    """A line is not what ``encode_line`` wrote."""


def encode_line(seq: int, kind: Kind, data: Mapping[str, Any]) -> bytes:
    """The line of a record, newline included.

    Raises:
        TypeError: ``data`` holds something that is not plain; the message has its key path.
    """
    body = b'{"v":%d,"seq":%d,"kind":"%s","data":%s}' % (VERSION, seq, kind.encode(), _dumps(data).encode())
    return b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def decode_line(line: bytes) -> Record:
    """The record of a line without its newline. ``data`` of a version that is not ours is left as it is read.

    Raises:
        DamagedLine: The checksum or the frame does not fit.
    """
    if not _is_intact(line):
        raise DamagedLine("its checksum does not fit")
    try:
        frame = json.loads(line)
        version, seq, kind, data = frame["v"], frame["seq"], frame["kind"], frame["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedLine("it is not a journal record") from error
    if not (isinstance(version, int) and isinstance(seq, int) and isinstance(data, dict)):
        raise DamagedLine("it is not a journal record")
    if version == VERSION and kind not in KINDS:
        raise DamagedLine(f"its kind {kind!r} is unknown")
    return Record(seq, kind, _restore(data) if b'"$' in line else data, version)


def contains_record(garbage: bytes) -> bool:
    """True where a whole, intact record is buried in a damaged line, e.g. because the newline after it is gone."""
    ends = [match.end() for match in _CRC.finditer(garbage)]
    start = garbage.find(LINE_START)
    while start >= 0:
        if any(end > start and _is_intact(garbage[start:end]) for end in ends):
            return True
        start = garbage.find(LINE_START, start + 1)
    return False


def as_read(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` as a reader of the journal gets it: a deep copy of plain values."""
    return cast("dict[str, Any]", _restore(json.loads(_dumps(data))))


def _is_intact(line: bytes) -> bool:
    match = _CRC.fullmatch(line, max(0, len(line) - _CRC_LENGTH))
    return (
        match is not None
        and line.startswith(LINE_START)
        and int(match[1], 16) == zlib.crc32(line[: match.start()] + b"}")
    )


def _dumps(data: Mapping[str, Any]) -> str:
    try:
        text = _compact(data)
        if '"$' not in text and isinstance(data, dict):
            return text  # nothing to mark or escape: the quick way for nearly every record
    except (ValueError, TypeError):
        pass  # a NaN, or a value that needs converting: the thorough way decides
    return _compact(_plain(data, "data"))


def _plain(value: Any, path: str) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_MARKER: repr(float(value))}
    if isinstance(value, Mapping):
        out = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}: keys of journal data are strings")
            out["$" + key if key.startswith("$") else key] = _plain(item, f"{path}.{key}")
        return out
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return _plain(value.item(), path)  # a numpy scalar, told without importing numpy
    raise TypeError(f"{path} is a {type(value).__name__}: journal data are plain values")


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_MARKER}:
            return float(value[_MARKER])
        return {key[1:] if key.startswith("$") else key: _restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore(item) for item in value]
    return value
