"""Calibration statistics are the same for any order and sharding, and masks do not set ranges."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distune.backends.histogram import Histogram
from distune.backends.statistics import CalibrationStatistics, merge, nonfinite_values
from distune.errors import TrialError

ALGORITHMS = ("minmax", "kl", "percentile")


def batches(count: int = 12) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    out = []
    for index in range(count):
        signed = (rng.normal(size=(4, 50)) * 3.0 ** rng.integers(-8, 4)).astype(np.float32)
        masked = np.where(rng.random((4, 50)) < 0.3, np.float32(-1e9), signed)
        out.append({"signed": signed, "relu": np.maximum(signed, 0), "masked": masked, "zero": signed * 0})
        if index == 5:
            out[-1]["masked"][0, 0] = -np.inf
    return out


def collect(indices: list[int], data: list[dict[str, np.ndarray]], histograms: bool = True) -> bytes:
    statistics = CalibrationStatistics(histograms)
    for index in indices:
        statistics.add(index, data[index])
    return statistics.to_bytes()


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(12)), shards=st.integers(1, 5))
def test_any_order_and_sharding_gives_the_same_bytes_and_ranges(order: list[int], shards: int) -> None:
    data = batches()
    whole = collect(list(range(12)), data)
    merged = merge(collect(order[shard::shards], data) for shard in range(shards))
    assert merged == merge([whole]) == whole
    one, many = CalibrationStatistics.from_bytes(whole), CalibrationStatistics.from_bytes(merged)
    for tensor in data[0]:
        for algorithm in ALGORITHMS:
            assert one.range(tensor, algorithm) == many.range(tensor, algorithm)


@pytest.mark.parametrize("largest", [1e-44, 1e-38, 3e-3, 1.0, 4095.9, 4096.0, 1e7, 3e38])
def test_every_value_is_in_the_bin_that_exact_arithmetic_gives_it(largest: float) -> None:
    rng = np.random.default_rng(3)
    values = np.float32(largest) * rng.uniform(-1, 1, 5000).astype(np.float32)
    edges = np.float32(np.ldexp(np.float64(np.abs(values).max()), -5)) * np.arange(-32, 33, dtype=np.float32)
    tiny = np.array([-1e-45, 1e-45, -1e-38, -0.0, 0.0], np.float32)
    values = np.concatenate([values, edges, tiny[np.abs(tiny) <= np.abs(values).max()]])
    histogram = Histogram()
    histogram.add(values, float(values.min()), float(values.max()))
    exact = Counter(int(Fraction(float(value)) // Fraction(2) ** histogram.exponent) for value in values)
    found = {int(place) - 4096: int(histogram.counts[place]) for place in np.flatnonzero(histogram.counts)}
    assert found == exact


def test_minmax_is_the_exact_minimum_and_maximum() -> None:
    data = batches()
    statistics = CalibrationStatistics.from_bytes(collect(list(range(12)), data))
    everything = np.concatenate([batch["signed"].ravel() for batch in data])
    assert statistics.range("signed") == (float(everything.min()), float(everything.max()))


def test_without_histograms_minima_and_maxima_are_the_same_and_the_rest_is_refused() -> None:
    data = batches()
    whole = CalibrationStatistics.from_bytes(collect(list(range(12)), data))
    shards = [collect(list(range(12))[shard::3], data, histograms=False) for shard in range(3)]
    light = CalibrationStatistics.from_bytes(merge(shards))
    assert len(merge(shards)) < len(whole.to_bytes()) / 2
    assert nonfinite_values(merge(shards)) == nonfinite_values(whole.to_bytes())
    assert light.remarks() == whole.remarks()  # masks are known for what they are
    for tensor in data[0]:
        for algorithm in ("minmax", "moving_average"):
            assert light.range(tensor, algorithm) == whole.range(tensor, algorithm)
        if tensor != "zero":
            for algorithm in ("kl", "percentile"):
                with pytest.raises(TrialError, match=f"'{tensor}' were not counted, which algorithm '{algorithm}'"):
                    light.range(tensor, algorithm)


@pytest.mark.parametrize("histograms", [True, False])
def test_bytes_come_back_unchanged(histograms: bool) -> None:
    blob = collect([0, 3, 7], batches(), histograms)
    assert CalibrationStatistics.from_bytes(blob).to_bytes() == blob


def test_mask_constants_and_infinities_do_not_set_a_range() -> None:
    statistics = CalibrationStatistics.from_bytes(collect(list(range(12)), batches()))
    for algorithm in ALGORITHMS:
        low, high = statistics.range("masked", algorithm)
        assert -1e4 < low < high < 1e4
    remark = statistics.remarks()["masked"]
    assert "mask constants" in remark
    assert "1 values not finite" in remark
    assert statistics.remarks().keys() == {"masked"}


def test_large_values_that_continue_the_others_are_part_of_the_range() -> None:
    statistics = CalibrationStatistics()
    statistics.add(0, {"pixels": np.linspace(0, 65535, 5000, dtype=np.float32)})
    assert statistics.range("pixels") == (0.0, 65535.0)
    assert statistics.range("pixels", "percentile")[1] > 65000
    assert statistics.remarks() == {}


def test_a_tensor_of_large_values_alone_keeps_them() -> None:
    statistics = CalibrationStatistics()
    statistics.add(0, {"prices": np.linspace(2e5, 9e5, 100, dtype=np.float32)})
    assert statistics.range("prices") == (2e5, 9e5)


@pytest.mark.parametrize("algorithm", ["kl", "percentile"])
def test_outliers_are_clipped(algorithm: str) -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    values[:3] = (80.0, -90.0, 100.0)
    statistics = CalibrationStatistics()
    statistics.add(0, {"x": values})
    low, high = statistics.range("x", algorithm)
    assert 2 < high < 20
    assert -20 < low < -2


def test_kl_keeps_nearly_the_whole_range_of_a_rectified_gaussian() -> None:
    values = np.maximum(np.random.default_rng(2).normal(size=200_000), 0).astype(np.float32)
    statistics = CalibrationStatistics()
    statistics.add(0, {"relu": values, "few": values[:100]})
    assert statistics.range("relu", "kl")[1] > 3.5
    assert statistics.range("few", "kl") == statistics.range("few")


def test_percentile_agrees_with_numpy_to_a_bin() -> None:
    values = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    statistics = CalibrationStatistics()
    statistics.add(0, {"x": values})
    low, high = statistics.range("x", "percentile", percentile=99.0)
    assert low == pytest.approx(np.percentile(values, 0.5), abs=0.01)
    assert high == pytest.approx(np.percentile(values, 99.5), abs=0.01)


def test_one_sided_tensors_keep_their_side() -> None:
    statistics = CalibrationStatistics()
    statistics.add(0, {"relu": np.maximum(np.random.default_rng(0).normal(size=5000), 0).astype(np.float32)})
    for algorithm in ALGORITHMS:
        assert statistics.range("relu", algorithm)[0] == 0.0


def test_a_batch_in_two_shards_is_an_error() -> None:
    data = batches()
    with pytest.raises(TrialError, match="batch 1 twice"):
        merge([collect([0, 1], data), collect([1, 2], data)])


def test_damaged_bytes_and_unknown_tensors_are_errors() -> None:
    with pytest.raises(TrialError, match="calibrate again"):
        CalibrationStatistics.from_bytes(b"nonsense")
    with pytest.raises(TrialError, match="not calibrated"):
        CalibrationStatistics().range("x")


def test_a_batch_without_a_finite_value_leaves_the_range_to_the_others() -> None:
    statistics = CalibrationStatistics()
    for batch, values in enumerate([[np.nan, np.nan], [-1, 2], [np.inf, np.nan], [-1, 2]]):
        statistics.add(batch, {"x": np.array(values, np.float32)})
    for algorithm in ("minmax", "moving_average", "kl", "percentile"):
        low, high = statistics.range("x", algorithm)
        assert -1 <= low < high <= 2
    assert nonfinite_values(statistics.to_bytes()) == {"x": (4, 4)}
