"""Statistics by channel: right, and the same bits in any order."""

from __future__ import annotations

import numpy as np
import pytest

from distune.backends.channel_statistics import ChannelStatistics
from distune.backends.statistics import CalibrationStatistics, merge
from distune.errors import TrialError


def batches(count: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(4, 6, 5)) * rng.uniform(0.01, 50, size=(1, 6, 1))).astype(np.float32) for _ in range(count)
    ]


def test_they_are_those_of_numpy() -> None:
    seen = ChannelStatistics.of(batches()[0], 1)
    for other in batches()[1:]:
        seen.merge("x", ChannelStatistics.of(other, 1))
    rows = np.concatenate(batches()).transpose(1, 0, 2).reshape(6, -1).astype(np.float64)
    np.testing.assert_array_equal(seen.peak, np.abs(rows).max(1).astype(np.float32))
    np.testing.assert_array_equal((seen.low, seen.high), (rows.min(1), rows.max(1)))
    np.testing.assert_allclose(seen.mean, rows.mean(1), atol=1e-6)
    np.testing.assert_allclose(seen.mean_square, np.square(rows).mean(1), rtol=1e-6)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 3, 1, 0, 7, 2, 6, 5, 4]])
def test_any_order_and_sharding_gives_the_same_bytes(order: list[int]) -> None:
    def blob(indices: list[int]) -> bytes:
        statistics = CalibrationStatistics()
        for index in indices:
            statistics.add_channels("1:x", ChannelStatistics.of(batches()[index], 1))
        return statistics.to_bytes()

    assert merge([blob(order[i::3]) for i in range(3)]) == blob(list(range(9)))


def test_mask_constants_and_what_is_not_finite_do_not_spoil_the_sums() -> None:
    values = np.array([[1.0, -1e9], [np.nan, 2.0], [np.inf, 0.0]], np.float32)
    seen = ChannelStatistics.of(values, 1)
    assert np.isfinite(seen.mean).all()
    assert seen.high[0] == 1.0
    assert seen.peak[1] == 8192.0


def test_another_number_of_channels_is_an_error() -> None:
    with pytest.raises(TrialError, match="'x' has 6 channels in one batch and 4"):
        ChannelStatistics.of(batches()[0], 1).merge("x", ChannelStatistics.of(batches()[0], 0))
