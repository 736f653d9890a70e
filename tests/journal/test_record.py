"""One line of the journal keeps what it was given and notices every change."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distune.journal.record import DamagedLine, decode_line, encode_line

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.just("$float"), inner, max_size=4)
    ),
    max_leaves=12,
)
data = st.dictionaries(st.text(max_size=6), plain, max_size=4)


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.copysign(1, a) == math.copysign(1, b) and a == b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(data)
def test_every_plain_value_comes_back_with_its_key_order(values: dict[str, object]) -> None:
    line = encode_line(3, "result", values)
    record = decode_line(line[:-1])
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert record.seq == 3
    assert record.kind == "result"
    assert same(dict(record.data), values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_line_with_nan_or_infinity_is_still_strict_json(value: float) -> None:
    line = encode_line(0, "note", {"accuracy": value, "name": "NaN"})

    def refuse(text: str) -> None:
        raise AssertionError(text)

    json.loads(line, parse_constant=refuse)
    back = decode_line(line[:-1]).data
    assert same(back["accuracy"], value)
    assert back["name"] == "NaN"


@given(data, st.data())
def test_every_flipped_byte_is_noticed(values: dict[str, object], draw: st.DataObject) -> None:
    line = bytearray(encode_line(1, "decision", values)[:-1])
    index = draw.draw(st.integers(0, len(line) - 1))
    line[index] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(DamagedLine):
        decode_line(bytes(line))


def test_numpy_scalars_become_numbers_and_tuples_lists() -> None:
    values = {"met": np.bool_(True), "value": np.float32(0.5), "n": np.int64(3), "shape": (1, 2)}
    assert decode_line(encode_line(0, "note", values)[:-1]).data == {"met": True, "value": 0.5, "n": 3, "shape": [1, 2]}


def test_what_is_not_plain_is_refused_with_its_path() -> None:
    with pytest.raises(TypeError, match=r"data\.ops\[1\]\.weight is a bytes"):
        encode_line(0, "note", {"ops": [{}, {"weight": b"x"}]})
