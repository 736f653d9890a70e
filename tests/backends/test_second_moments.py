"""Sums that do not depend on who counted what: X^T X and the mean magnitude of activations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distune.backends.second_moments import SecondMoments
from distune.backends.statistics import CalibrationStatistics, merge
from distune.errors import TrialError


def batches(count: int, channels: int = 12) -> list[np.ndarray]:
    """Activations [2, 5, channels] whose channels differ by orders of magnitude."""
    rng = np.random.default_rng(3)
    spread = 10.0 ** rng.integers(-4, 3, channels)
    return [(rng.standard_normal((2, 5, channels)) * spread).astype(np.float32) for _ in range(count)]


def counted(parts: list[np.ndarray]) -> SecondMoments:
    out = SecondMoments(parts[0].shape[-1])
    for part in parts:
        out.add(part)
    return out


def test_they_are_the_second_moments_of_all_rows() -> None:
    data = batches(4)
    rows = np.concatenate([batch.reshape(-1, 12) for batch in data]).astype(np.float64)
    moments = counted(data)
    assert moments.rows == 40
    largest = np.sqrt(np.outer(np.square(rows).mean(axis=0), np.square(rows).mean(axis=0)))
    assert np.abs(moments.moments() - rows.T @ rows / 40).max() <= 1e-4 * largest.max()
    assert (np.abs(moments.moments() - rows.T @ rows / 40) <= 1e-4 * largest).all()
    np.testing.assert_allclose(moments.magnitude(), np.abs(rows).mean(axis=0), rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(7)), st.integers(1, 7))
def test_order_and_sharding_do_not_change_a_bit(order: list[int], shards: int) -> None:
    data = batches(7)
    together = counted(data)
    parts = [[data[index] for index in order[shard::shards]] for shard in range(shards)]
    merged = counted(parts[0])
    for part in parts[1:]:
        merged.merge(counted(part))
    assert merged.to_bytes() == together.to_bytes()


def test_rows_that_are_not_finite_are_left_out() -> None:
    data = batches(1)[0].reshape(-1, 12)
    spoilt = data.copy()
    spoilt[3, 2] = np.inf
    spoilt[7, 0] = np.nan
    assert counted([spoilt]).to_bytes() == counted([np.delete(data, [3, 7], axis=0)]).to_bytes()


def test_an_overflow_is_an_error_and_no_wrong_number() -> None:
    with pytest.raises(TrialError, match="too large"):
        counted([np.full((4, 12), 1e8, np.float32)])


def test_they_travel_with_the_statistics_of_ranges() -> None:
    data = batches(6)

    def shard(indices: range) -> bytes:
        statistics = CalibrationStatistics()
        for index in indices:
            statistics.add(index, {"range": data[index]})
            statistics.add_moments({"x": data[index], "y": data[index][..., :4]})
        return statistics.to_bytes()

    whole = shard(range(6))
    assert merge([shard(range(1, 6, 2)), shard(range(0, 6, 2))]) == whole
    back = CalibrationStatistics.from_bytes(whole)
    assert back.moments["x"].to_bytes() == counted(data).to_bytes()
    assert back.moments["y"].channels == 4
    assert back.range("range") == CalibrationStatistics.from_bytes(whole).range("range")


def test_the_size_depends_on_the_channels_alone() -> None:
    sizes = {len(counted(batches(count)).to_bytes()) for count in (1, 40)}
    assert sizes == {16 + 8 * 12 * 13 + 16 * 12}
