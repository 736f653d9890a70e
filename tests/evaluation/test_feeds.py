"""From data to feeds: what is cast, what is refused, and what the refusal says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distune.backends.base import InputInfo
from distune.data import open_dataloader
from distune.errors import DataError
from distune.evaluation.feeds import first_feed, to_feed

IMAGE = [InputInfo("x", "float32", ("n", 3, 8, 8))]
TEXT = [InputInfo("input_ids", "int64", ("n", "len")), InputInfo("attention_mask", "int64", ("n", "len"))]


def test_arrays_tuples_and_mappings_find_their_inputs() -> None:
    ids, mask = np.ones((2, 5), np.int32), np.zeros((2, 5), np.uint8)
    for given in ((ids, mask), {"attention_mask": mask, "input_ids": ids}):
        feed = to_feed(given, TEXT)
        assert list(feed) == ["input_ids", "attention_mask"]
        assert [a.dtype for a in feed.values()] == [np.int64, np.int64]
        assert feed["input_ids"].sum() == 10
    assert list(to_feed(np.zeros((1, 3, 8, 8), np.float32), IMAGE)) == ["x"]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8])
def test_value_preserving_casts(dtype: Any) -> None:
    feed = to_feed(np.ones((1, 3, 8, 8), dtype), IMAGE)
    assert feed["x"].dtype == np.float32


def test_a_feed_is_contiguous_and_costs_nothing_where_all_fits() -> None:
    ready = np.zeros((2, 3, 8, 8), np.float32)
    assert to_feed(ready, IMAGE)["x"] is ready
    assert to_feed(np.zeros((2, 8, 8, 3), np.float32).transpose(0, 3, 1, 2), IMAGE)["x"].flags.c_contiguous


def test_integers_narrow_only_where_the_values_fit() -> None:
    info = [InputInfo("ids", "int32", ("n",))]
    assert to_feed(np.array([7], np.int64), info)["ids"].dtype == np.int32
    with pytest.raises(DataError, match="values reach from 0 to 5000000000"):
        to_feed(np.array([0, 5_000_000_000]), info)


@pytest.mark.parametrize(
    ("inputs", "infos", "message"),
    [
        (np.zeros((1, 3, 8, 8), np.int64), IMAGE, r"'x': the data give int64\[1, 3, 8, 8\].*float32\[n, 3, 8, 8\]"),
        (np.zeros((1, 8, 8, 3), np.float32), IMAGE, "channels come last.*Transpose"),
        (np.zeros((3, 8, 8), np.float32), IMAGE, "one axis is missing"),
        (np.zeros((2, 1), np.float32), [InputInfo("x", "float32", (1, 1))], "batch is fixed; set batch_size 1"),
        (np.zeros((2, 5)), TEXT, "data give 1 input but the model has 2: 'input_ids', 'attention_mask'"),
        ({"input_ids": np.zeros((2, 5))}, TEXT, "missing: attention_mask"),
        ({"x": np.zeros(1), "y": np.zeros(1)}, IMAGE, "not of the model: y"),
        (np.full((1, 5), 0.5), [InputInfo("ids", "int64", ("n", "len"))], "the data give float64.*Cast"),
    ],
)
def test_misfits_are_explained(inputs: Any, infos: list[InputInfo], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_feed(inputs, infos)


@pytest.mark.parametrize("size", [1, 4, 5, 12])
def test_first_feed_has_exactly_the_size_asked_for(size: int) -> None:
    data = [(np.arange(s, s + 4, dtype=np.float32)[:, None], np.arange(4)) for s in (0, 4)]
    feed = first_feed(open_dataloader(data, 0), [InputInfo("x", "float32", ("n", 1))], size)
    assert feed["x"][:, 0].tolist() == [float(i % 8) for i in range(size)]


def test_first_feed_joins_batches_for_a_model_of_fixed_batch() -> None:
    data = [(np.ones((1, 2), np.float32), 0), (np.zeros((1, 2), np.float32), 0)]
    feed = first_feed(open_dataloader(data, 0), [InputInfo("x", "float32", (2, 2))], 2)
    assert feed["x"].tolist() == [[1, 1], [0, 0]]
    ragged = [(np.ones((1, 2), np.float32), 0), (np.zeros((1, 3), np.float32), 0)]
    with pytest.raises(DataError, match="cannot be joined"):
        first_feed(open_dataloader(ragged, 0), [InputInfo("x", "float32", ("n", "m"))], 2)
