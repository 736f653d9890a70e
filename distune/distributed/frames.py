"""Length-prefixed pickles on a byte stream: what an agent and its child process say to each other.

Pickle is right here: both ends are the same program of the same user, joined by a socket pair that nobody else holds.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("<Q")


def encode_frame(message: object) -> bytes:
    """``message`` as one frame: eight bytes of length, then its pickle."""
    return frame_of(pickle.dumps(message, protocol=5))


def frame_of(body: bytes) -> bytes:
    """``body`` as one frame."""
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Puts frames together from whatever pieces the stream delivers."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Messages that are complete with ``data``."""
        return map(pickle.loads, self.bodies(data))

    def bodies(self, data: bytes) -> Iterator[bytes]:
        """The same, still pickled."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                body = bytes(view[_LENGTH.size : end])
            del self._buffer[:end]
            yield body
