"""Several metrics as one accuracy: which direction each has, and by which names they are asked for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from distune.config.job import ComponentSpec, CriterionSpec, EvaluationSpec, MetricSpec
from distune.errors import DataError, UsageError
from distune.evaluation.criterion import check_directions
from distune.evaluation.metric_set import MetricSet, by_names
from distune.metrics import PerSampleMetric
from tests.data.user_components import Misses

ACCURACY = MetricSpec(ComponentSpec("Accuracy", {}))


class Silent:
    """A metric of the user's that does not say its direction."""

    def update(self, predictions: Any, labels: Any) -> None: ...

    def reset(self) -> None: ...

    def result(self) -> float:
        return 0.2


class SilentOfOurs(PerSampleMetric):
    """The same, derived from a class of the package."""

    def outcomes(self, outputs: Any, labels: Any) -> Any:
        return outputs


def directions(*metrics: MetricSpec, higher: bool) -> dict[str, bool]:
    """As a run finds them, where the criterion wants ``higher``."""
    spec = EvaluationSpec([], metrics)
    found = MetricSet(spec, ["y"], higher).directions
    check_directions(spec, CriterionSpec("relative", 0.01, higher), found)
    return dict(found)


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("metric", [Silent, Silent(), SilentOfOurs])
def test_a_metric_that_does_not_say_its_direction_has_that_of_the_criterion(metric: Any, higher: bool) -> None:
    assert [*directions(MetricSpec(metric), higher=higher).values()] == [higher]
    assert [*directions(MetricSpec(metric), ACCURACY, higher=higher).values()] == [higher, True]


def test_a_metric_of_the_users_may_not_contradict_the_criterion() -> None:
    assert directions(MetricSpec(Misses), higher=False) == {"Misses": False}
    with pytest.raises(UsageError, match=r"lower is better for the metric Misses.*set its higher_is_better to false"):
        directions(MetricSpec(Misses), higher=True)
    with pytest.raises(UsageError, match="lower is better for the metric Silent"):
        directions(MetricSpec(Silent, higher_is_better=False), higher=True)


def test_what_the_criterion_says_of_the_first_metric_is_not_guessed_of_the_others() -> None:
    """Taken for an error, an accuracy might fall as far as it likes; taken for an accuracy, an error might rise."""
    first = MetricSpec(Misses)
    with pytest.raises(DataError, match=r"metric 'Silent' does not say.*multi_metrics\.higher_is_better"):
        directions(first, MetricSpec(Silent), higher=False)
    assert directions(first, MetricSpec(Silent, higher_is_better=True), higher=False) == {
        "Misses": False,
        "Silent": True,
    }
    assert directions(ACCURACY, MetricSpec(Silent), higher=True) == {"Accuracy": True, "Silent": True}


def test_one_number_is_what_is_asked_for_only_where_one_metric_is() -> None:
    assert by_names(["recall"], 0.9, {}, "the evaluation") == (0.9, {"recall": 0.9})
    assert by_names(["recall"], 0.9, {"topk": 0.9}, "the evaluation")[0] == 0.9
    assert by_names(["topk"], 0.9, {"topk": 0.9}, "the evaluation") == (0.9, {"topk": 0.9})
    for asked in (["topk", "recall"], ["recall", "topk"]):
        with pytest.raises(UsageError, match=r"tuning\.metrics asks for recall, and the evaluation gives topk"):
            by_names(asked, 0.9, {"topk": 0.9}, "the evaluation")


class Parts(Silent):
    """A metric of the user's that gives a number a sample, in whatever shape."""

    outcome_low, outcome_high = 0.0, 1.0

    def __init__(self, **given: Any) -> None:
        self.given: dict[str, Any] = {"outcomes": np.ones(3), "margins": np.ones(3), **given}
        self.asked: list[str] = []

    def outcomes(self, predictions: Any, labels: Any) -> Any:
        self.asked.append("outcomes")
        return self.given["outcomes"]

    def margins(self, predictions: Any, labels: Any) -> Any:
        self.asked.append("margins")
        return self.given["margins"]


def taken(metric: Any) -> MetricSet:
    found = MetricSet(EvaluationSpec([], (MetricSpec(metric),)), ["y"])
    found.take(0, [np.zeros((3, 5))], np.zeros(3, np.int64))
    return found


@pytest.mark.parametrize(
    ("margins", "shape"), [(np.ones((3, 1)), "[3, 1]"), (np.ones(2), "[2]"), (np.ones((3, 5)), "[3, 5]"), (1.0, "[]")]
)
def test_margins_are_one_number_a_sample(margins: Any, shape: str) -> None:
    with pytest.raises(DataError, match=rf"metric 'Parts': margins of shape {re.escape(shape)}.*one number a sample"):
        taken(Parts(margins=margins)).margins()


@pytest.mark.parametrize("part", ["outcomes", "margins"])
def test_what_is_no_array_of_numbers_is_named(part: str) -> None:
    with pytest.raises(DataError, match=rf"metric 'Parts': {part} are no array of numbers.*ragged|inhomogeneous"):
        taken(Parts(**{part: [[1.0], [1.0, 2.0], [1.0]]})).margins()


def test_a_metric_is_asked_once_for_what_a_batch_says() -> None:
    metric = Parts()
    found = taken(metric)
    assert found.outcomes()[0].values.tolist() == found.outcomes()[0].values.tolist() == [1.0] * 3
    assert found.margins()[0] is not None
    assert metric.asked == ["outcomes", "margins"]
    metric.given["outcomes"] = np.zeros(2)
    found.take(1, [np.zeros((2, 5))], np.zeros(2, np.int64))
    assert found.outcomes()[0].values.tolist() == [0.0] * 2
