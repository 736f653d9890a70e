"""Several metrics as one accuracy: which direction each has, and by which names they are asked for."""

from __future__ import annotations

from typing import Any

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
