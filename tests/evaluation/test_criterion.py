"""The verdict's corner cases: on target, negative and zero baselines, lower is better, NaN."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from distune.config.job import CriterionSpec
from distune.evaluation.criterion import best_first, better, meets, target_accuracy


@pytest.mark.parametrize(
    ("kind", "tolerance", "higher", "baseline", "target"),
    [
        ("relative", 0.01, True, 0.8, 0.792),
        ("relative", 0.01, False, 4.0, 4.04),
        ("relative", 0.01, True, -1.0, -1.01),
        ("relative", 0.01, True, 0.0, 0.0),
        ("absolute", 0.5, True, -1.0, -1.5),
        ("absolute", 0.5, False, 2.0, 2.5),
    ],
)
def test_target(kind: str, tolerance: float, higher: bool, baseline: float, target: float) -> None:
    criterion = CriterionSpec(kind, tolerance, higher)  # type: ignore[arg-type]
    assert target_accuracy(criterion, baseline) == pytest.approx(target)


def test_exactly_on_target_meets() -> None:
    assert meets(0.5, 0.5, True)
    assert meets(0.5, 0.5, False)
    assert not meets(math.nextafter(0.5, 0), 0.5, True)
    assert not meets(math.nextafter(0.5, 1), 0.5, False)


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(("kind", "tolerance"), [("relative", 0.01), ("relative", 0.05), ("absolute", 0.01)])
def test_who_loses_exactly_what_is_allowed_meets_and_one_sample_more_does_not(
    kind: str, tolerance: float, higher: bool
) -> None:
    samples, criterion, seen = 2000, CriterionSpec(kind, tolerance, higher), 0  # type: ignore[arg-type]
    for right in range(1, samples):
        allowed = Fraction(str(tolerance)) * (right if kind == "relative" else samples)
        least = right - allowed if higher else right + allowed
        if least.denominator > 1 or not 0 < least < samples:
            continue
        target = target_accuracy(criterion, right / samples)
        assert meets(int(least) / samples, target, higher)
        assert not meets((int(least) + (-1 if higher else 1)) / samples, target, higher)
        seen += 1
    assert seen > 15


def test_an_unchanged_model_meets_whatever_the_sign_of_its_baseline() -> None:
    for baseline in (-1.0, 0.0, 1.0):
        for higher in (True, False):
            assert meets(baseline, target_accuracy(CriterionSpec("relative", 0.01, higher), baseline), higher)


def test_nan_never_meets_and_is_never_better() -> None:
    assert not meets(math.nan, 0.0, True)
    assert not meets(1.0, math.nan, True)
    assert not better(math.nan, 0.0, True)
    assert better(0.0, math.nan, True)


@pytest.mark.parametrize("higher", [True, False])
def test_the_key_that_sorts_agrees_with_better_and_puts_what_is_unknown_last(higher: bool) -> None:
    values = [-math.inf, -1.0, 0.0, 2.0, math.inf, math.nan]
    for a in values:
        for b in values:
            assert better(a, b, higher) == (best_first(a, higher) < best_first(b, higher))
    assert best_first(None, higher) == best_first(math.nan, higher)
