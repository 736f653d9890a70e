"""Numbers in words never claim more than was measured."""

from __future__ import annotations

import pytest

from distune.report import words
from distune.report.result import LatencyFigures


@pytest.mark.parametrize(
    ("ratio", "low", "high", "expected"),
    [
        (0.5, 0.48, 0.52, "2x faster than fp32"),
        (0.98, 0.97, 0.99, "slightly faster than fp32"),
        (1.0, 0.9, 1.1, "as fast as fp32"),
        (0.9, 0.7, 1.0, "as fast as fp32"),
        (1.5, 1.4, 1.6, "fp32 is 1.5x faster"),
        (None, None, None, "latency was not measured"),
    ],
)
def test_faster_is_said_only_where_the_interval_leaves_no_doubt(
    ratio: float | None, low: float | None, high: float | None, expected: str
) -> None:
    assert words.speed(LatencyFigures(ratio, low, high, 1.0, 2.0, 1, 1, "node1")) == expected


def test_an_early_verdict_shows_its_bounds() -> None:
    assert words.accuracy(0.5, 0.4, 0.6) == "0.4000..0.6000"
    assert words.accuracy(0.5, 0.5, 0.5) == "0.5000"
    assert words.accuracy(None) == words.accuracy(float("nan")) == "-"


def test_units() -> None:
    assert [words.size(value) for value in (None, 12, 340_000, 1_210_000, 7_000_000_000)] == [
        "-",
        "12 B",
        "340 kB",
        "1.21 MB",
        "7 GB",
    ]
    assert [words.duration(value) for value in (0.44, 61, 600, 7200)] == ["0.4 s", "61 s", "10 min", "2.0 h"]
