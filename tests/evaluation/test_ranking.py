"""Ranking by the samples that decide: those of the smallest margins of the config that the trials differ from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distune.config.job import ComponentSpec, MetricSpec
from distune.errors import DataError
from distune.evaluation.ranking import SHARE, DecisiveSamples, choose
from distune.evaluation.verdict import Demand
from tests.evaluation.test_verdict import COUNT, DATA, FP32, LABELS, degraded, demand, evaluator, table, with_order

BASE = degraded(1.0)


def changed(part: float, seed: int) -> NDArray[np.float32]:
    """What a config that differs from the base in one op might say: near the base, not near fp32."""
    return (BASE + part * (FP32 - BASE) + part * np.random.default_rng(seed).normal(size=FP32.shape)).astype(np.float32)


def right(scores: NDArray[np.float32]) -> int:
    return int(np.count_nonzero(scores.argmax(1) == LABELS))


def test_trials_are_ranked_as_by_all_samples_where_the_others_do_as_the_base_does() -> None:
    judge, _ = with_order(evaluator())
    score, decisive = judge.survey(table(BASE), Demand())
    assert score.complete
    assert score.value == score.graded == evaluator().score(table(BASE)).value
    assert decisive is not None
    assert len(decisive.rows) == SHARE * COUNT
    ranked = []
    for seed, part in enumerate((0.02, 0.05, 0.1, 0.05, 0.02, 0.1)):
        scores = changed(part, seed)
        elsewhere = np.setdiff1d(np.arange(COUNT), decisive.rows)
        alike = (scores.argmax(1) == LABELS)[elsewhere] == (BASE.argmax(1) == LABELS)[elsewhere]
        assert alike.all()  # else this test says nothing
        found = judge.score(table(scores), demand=demand(2.0, accuracy="ranking"), decisive=decisive)
        assert (found.complete, found.samples) == (False, len(decisive.rows))
        assert found.graded is not None
        ranked.append((found.graded, right(scores)))
        assert found.graded == pytest.approx(right(scores) / COUNT, abs=1 / COUNT)
        assert found.low <= right(scores) / COUNT <= found.high
    by_score = [count for _, count in sorted(ranked)]
    assert by_score == sorted(by_score)
    assert len(set(by_score)) > 1


def test_equal_numbers_of_flips_are_told_apart_by_the_shift_of_the_margins() -> None:
    judge, _ = with_order(evaluator())
    base, decisive = judge.survey(table(BASE), Demand())
    better, worse = BASE.copy(), BASE.copy()
    nudge = 1e-4
    better[np.arange(COUNT), LABELS] += nudge
    worse[np.arange(COUNT), LABELS] -= nudge
    assert right(better) == right(worse) == right(BASE)
    up, down = (
        judge.score(table(scores), demand=demand(2.0, accuracy="ranking"), decisive=decisive).graded
        for scores in (better, worse)
    )
    assert up is not None
    assert down is not None
    assert base.graded is not None
    assert down < base.graded < up


class ErrorRate:
    """A metric of the user's that leaves its direction to the criterion."""

    outcome_low, outcome_high = 0.0, 1.0

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.wrong: list[float] = []

    def update(self, predictions: Any, labels: Any) -> None:
        self.wrong += self.outcomes(predictions, labels).tolist()

    def result(self) -> float:
        return float(np.mean(self.wrong))

    def outcomes(self, predictions: Any, labels: Any) -> NDArray[np.float64]:
        return np.asarray(predictions.argmax(1) != labels, np.float64)

    def margins(self, predictions: Any, labels: Any) -> Any:
        others = predictions.astype(np.float64)
        others[np.arange(len(labels)), labels] = -np.inf
        return predictions[np.arange(len(labels)), labels] - others.max(1)


def test_margins_are_weighed_in_the_direction_of_the_criterion() -> None:
    judge, _ = with_order(evaluator(MetricSpec(ErrorRate)))
    base, decisive = judge.survey(table(BASE), Demand())
    better = BASE.copy()
    better[np.arange(COUNT), LABELS] += 1e-4
    wanted = replace(demand(-1.0, higher=False, accuracy="ranking"), higher_is_better=False)
    found = judge.score(table(better), demand=wanted, decisive=decisive).graded
    assert found is not None
    assert base.graded is not None
    assert found < base.graded


TOP_1, TOP_3 = ComponentSpec("topk", {"k": 1}), ComponentSpec("topk", {"k": 3})
SEVERAL = {
    "one": (MetricSpec(TOP_1),),
    "each its own": (MetricSpec(TOP_1), MetricSpec(TOP_3)),
    "weighted": (MetricSpec(TOP_1, 0.5), MetricSpec(TOP_3, 0.5)),
    "the second has margins": (MetricSpec(ComponentSpec("Loss", {})), MetricSpec(TOP_1)),
}


@pytest.mark.parametrize("metrics", SEVERAL.values(), ids=SEVERAL)
def test_the_bases_own_score_is_its_accuracy(metrics: tuple[MetricSpec, ...]) -> None:
    judge, _ = with_order(evaluator(*metrics))
    base, decisive = judge.survey(table(BASE), Demand())
    assert decisive is not None
    travelled = DecisiveSamples.decode(decisive.encode())
    again = judge.score(table(BASE), demand=demand(2.0, accuracy="ranking"), decisive=travelled)
    assert (again.complete, again.samples) == (False, len(decisive.rows))
    assert again.graded == pytest.approx(base.value, rel=1e-12)
    assert base.graded == base.value


def test_margins_that_a_metric_says_of_the_base_only_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, _ = with_order(evaluator(MetricSpec(ErrorRate)))
    _, decisive = judge.survey(table(BASE), Demand())
    monkeypatch.setattr(ErrorRate, "margins", lambda *args: None)
    with pytest.raises(DataError, match="'ErrorRate' gives margins of one model and none of another"):
        judge.score(table(BASE), demand=demand(2.0, accuracy="ranking"), decisive=decisive)


def test_what_promises_to_meet_is_judged_in_full() -> None:
    judge, fp32 = with_order(evaluator())
    _, decisive = judge.survey(table(BASE), Demand())
    good = judge.score(table(FP32), demand=demand(fp32.value - 0.3, accuracy="ranking"), decisive=decisive)
    assert good.complete
    assert good.verdict is True
    assert good.value == fp32.value
    assert good.graded is not None
    almost = judge.score(table(BASE), demand=demand(fp32.value, accuracy="ranking"), decisive=decisive)
    assert not almost.complete


def test_losses_say_no_margins_so_that_nothing_decides() -> None:
    judge, _ = with_order(evaluator(MetricSpec(ComponentSpec("Loss", {}))))
    assert judge.order is not None
    assert not judge.order.margins
    assert judge.survey(table(BASE), Demand())[1] is None


def test_fewer_samples_than_five_batches_are_all_needed() -> None:
    judge, _ = with_order(evaluator(data=DATA[:4]))
    assert judge.survey(table(BASE), Demand())[1] is None


def test_the_samples_travel_small_and_whole() -> None:
    margins = np.random.default_rng(0).normal(size=50_000)
    margins[7] = np.nan
    found = choose(margins, [(margins > 0).astype(float)], 64, (1.0,))
    assert found is not None
    assert DecisiveSamples.decode(found.encode()) == found
    assert len(found.rows) == 9984  # whole batches
    assert np.abs(margins[found.rows]).max() <= np.sort(np.abs(margins))[9984]
    assert len(found.encode()) < 9_000
    with pytest.raises(DataError, match="version 9"):
        DecisiveSamples.decode("[9]")
