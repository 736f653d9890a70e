"""Early verdicts: always those of the complete evaluation, and not a batch later than they could be given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distune.backends.base import Feed, InputInfo, Outputs
from distune.config.job import ComponentSpec, CriterionSpec, EvaluationSpec, MetricSpec
from distune.errors import DataError
from distune.evaluation.accuracy import Evaluator, Score
from distune.evaluation.criterion import Target, meets, metric_targets, target_accuracy
from distune.evaluation.order import SampleOrder
from distune.evaluation.verdict import Demand, VerdictBounds
from distune.metrics.per_sample import Outcomes, PerSampleForm
from distune.metrics.sums import ExactSum
from tests.evaluation.test_accuracy import FunctionModel

# ------------------------------------------------------------------------------------------------- the bounds alone


@dataclass(frozen=True)
class Case:
    """Outcomes of several metrics, the batches that they come in, and a criterion."""

    outcomes: tuple[NDArray[np.float64], ...]
    weights: tuple[NDArray[np.float64], ...]
    limits: tuple[tuple[float, float], ...]
    shares: tuple[float, ...] | None
    sizes: tuple[int, ...]
    target: float
    higher: bool

    def forms(self) -> list[PerSampleForm]:
        def unread(*args: Any) -> Any:
            raise AssertionError("the outcomes are given")

        return [
            PerSampleForm(str(i), low, high, lambda mean: mean, True, unread, unread)
            for i, (low, high) in enumerate(self.limits)
        ]

    def combine(self, values: Sequence[float]) -> float:
        return values[0] if self.shares is None else float(np.average(values, weights=self.shares))

    def complete(self) -> float:
        return self.combine([_mean(o, w) for o, w in zip(self.outcomes, self.weights, strict=True)])

    def stop(self) -> int | None:
        """Batches after which the early verdict ended the trial."""
        totals = [float(w.sum()) for w in self.weights]
        target = ("", Target(self.target, self.higher))
        bounds = VerdictBounds(self.forms(), totals, self.combine, Demand((target,), accuracy="verdict"))
        start = 0
        for index, size in enumerate(self.sizes[:-1], 1):
            rows = slice(start, start + size)
            bounds.take([Outcomes(o[rows], w[rows]) for o, w in zip(self.outcomes, self.weights, strict=True)])
            assert bounds.accuracy.low <= self.complete() <= bounds.accuracy.high or math.isnan(self.complete())
            start += size
            if bounds.settled:
                return index
        return None

    def needed(self, slack: float) -> int | None:
        """The same by exact arithmetic: the first batch after which the best case fails by more than ``slack``."""
        target = Fraction(self.target) + (-1 if self.higher else 1) * Fraction(slack)
        seen = 0
        for index, size in enumerate(self.sizes[:-1], 1):
            seen += size
            best = [
                self._best(o[:seen], w[:seen], w, limits)
                for o, w, limits in zip(self.outcomes, self.weights, self.limits, strict=True)
            ]
            if any(value is None for value in best):
                return index
            shares = [Fraction(1)] if self.shares is None else [Fraction(s) for s in self.shares]
            if any(math.isinf(v) and s for v, s in zip(best, shares, strict=False)):  # type: ignore[arg-type]
                continue
            mean = sum(s * Fraction(v) for v, s in zip(best, shares, strict=False) if s) / sum(shares)  # type: ignore[arg-type,misc]
            if mean < target if self.higher else mean > target:
                return index
        return None

    def _best(
        self,
        seen: NDArray[np.float64],
        own: NDArray[np.float64],
        every: NDArray[np.float64],
        limits: tuple[float, float],
    ) -> Fraction | float | None:
        if np.isnan(seen).any():
            return None
        bound = limits[1] if self.higher else limits[0]
        rest = Fraction(float(every.sum())) - Fraction(float(own.sum()))
        if math.isinf(bound) and rest:
            return bound
        return (sum(map(Fraction, seen.tolist())) + rest * Fraction(bound if rest else 0)) / Fraction(
            float(every.sum())
        )


def _mean(outcomes: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    total = ExactSum()
    total.add(outcomes)
    return total.value() / float(weights.sum())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(2, 60))
    metrics = draw(st.integers(1, 3))
    outcomes, weights, limits = [], [], []
    higher = draw(st.booleans())
    for _ in range(metrics):
        kind = draw(st.sampled_from(["right or wrong", "share", "loss", "odd"]))
        weight = np.ones(count)
        if kind == "right or wrong":
            values = np.array(draw(st.lists(st.sampled_from([0.0, 1.0, 1.0, 1.0]), min_size=count, max_size=count)))
            limits.append((0.0, 1.0))
        elif kind == "share":
            values = np.array(draw(st.lists(st.integers(0, 7), min_size=count, max_size=count))) / 7
            limits.append((0.0, 1.0))
        elif kind == "odd":
            values = np.array(draw(st.lists(st.floats(-0.3, 0.1), min_size=count, max_size=count)))
            limits.append((-0.3, 0.1))
        else:
            weight = np.array(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)), float)
            weight[0] = 3.0
            values = weight * np.array(draw(st.lists(st.floats(0, 50), min_size=count, max_size=count)))
            limits.append((0.0, math.inf))
        if draw(st.integers(0, 19)) == 0:
            values[draw(st.integers(0, count - 1))] = math.nan
        outcomes.append(values)
        weights.append(weight)
    shares = tuple(draw(st.floats(0.1, 5)) for _ in range(metrics)) if metrics > 1 else None
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(min(draw(st.integers(1, 12)), count - sum(sizes)))
    case = Case(tuple(outcomes), tuple(weights), tuple(limits), shares, tuple(sizes), 0.0, higher)
    value = case.complete()
    near = 0.5 if math.isnan(value) else value
    target = draw(
        st.one_of(
            st.sampled_from([near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)]),
            st.floats(near - 1, near + 1),
        )
    )
    return Case(case.outcomes, case.weights, case.limits, case.shares, case.sizes, target, higher)


@given(cases())
@settings(max_examples=300, deadline=None)
def test_a_trial_ends_early_only_if_it_fails_and_as_soon_as_the_best_case_fails(case: Case) -> None:
    stop = case.stop()
    if stop is not None:
        assert not meets(case.complete(), case.target, case.higher)
        earliest = case.needed(-_EDGE)
        assert earliest is not None
        assert earliest <= stop
    latest = case.needed(_EDGE)
    if latest is not None:
        assert stop is not None
        assert stop <= latest


_EDGE = 1e-9
"""What rounding may make of a best case that lies right on the target."""


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=50), st.randoms())
@settings(deadline=None)
def test_exact_sums_do_not_depend_on_order_or_grouping(terms: list[float], chance: Any) -> None:
    shuffled = list(terms)
    chance.shuffle(shuffled)
    cut = chance.randint(0, len(terms))
    total = ExactSum()
    total.add(np.array(shuffled[:cut], float))
    total.add(np.array(shuffled[cut:], float))
    assert total.value() == math.fsum(terms)


# ---------------------------------------------------------------------------------------------------- whole evaluations

COUNT, CLASSES = 200, 5
RNG = np.random.default_rng(11)
LABELS = RNG.integers(0, CLASSES, COUNT)
FP32 = RNG.normal(size=(COUNT, CLASSES)).astype(np.float32)
FP32[np.arange(COUNT), LABELS] += 1.5
IDS = np.arange(COUNT, dtype=np.float32)[:, None]
DATA = [(IDS[i : i + 20], LABELS[i : i + 20]) for i in range(0, COUNT, 20)]
INPUTS = [InputInfo("id", "float32", ("n", 1))]


def table(scores: NDArray[np.float32]) -> FunctionModel:
    """A model that knows its output for every sample by heart."""
    return FunctionModel(lambda feed: [scores[feed["id"][:, 0].astype(int)]])


def degraded(noise: float, seed: int = 0) -> NDArray[np.float32]:
    drift = np.random.default_rng(seed).normal(size=FP32.shape)
    return (FP32 + noise * drift).astype(np.float32)


def evaluator(*metrics: MetricSpec, data: Any = DATA, **settings: Any) -> Evaluator:
    given_metrics = metrics or (MetricSpec(ComponentSpec("topk", {"k": 1})),)
    return Evaluator(EvaluationSpec(data, given_metrics, **settings), INPUTS, ["y"], 0)


def with_order(judge: Evaluator) -> tuple[Evaluator, Score]:
    score = judge.score_fp32(table(FP32))
    assert judge.order is not None
    return judge, score


def demand(target: float, higher: bool = True, accuracy: Any = "verdict", floor: float | None = None) -> Demand:
    return Demand((("", Target(target, higher)),), floor, higher, accuracy)


@pytest.mark.parametrize("kind", ["relative", "absolute"])
@pytest.mark.parametrize(
    "metrics",
    [
        (MetricSpec(ComponentSpec("topk", {"k": 1})),),
        (MetricSpec(ComponentSpec("topk", {"k": 2})),),
        (MetricSpec(ComponentSpec("topk", {"k": 1}), 0.7), MetricSpec(ComponentSpec("Accuracy", {}), 0.3)),
        (MetricSpec(ComponentSpec("Loss", {})),),
        (MetricSpec(ComponentSpec("Perplexity", {})),),
    ],
    ids=["top-1", "top-2", "weighted", "loss", "perplexity"],
)
@given(st.floats(0, 3), st.integers(0, 9), st.floats(0, 0.2))
@settings(max_examples=15, deadline=None)
def test_verdicts_are_those_of_the_complete_evaluation(
    kind: Any, metrics: tuple[MetricSpec, ...], noise: float, seed: int, tolerance: float
) -> None:
    judge, fp32 = with_order(evaluator(*metrics))
    higher = next(iter(judge.metric_directions.values()))
    target = target_accuracy(CriterionSpec(kind, tolerance, higher), fp32.value)
    model = table(degraded(noise, seed))
    complete = evaluator(*metrics).score(model)
    early = judge.score(model, demand=demand(target, higher))
    assert early.verdict is meets(complete.value, target, higher)
    assert early.complete or early.verdict is False
    if early.complete:
        assert early.value == complete.value  # the same in any order
    else:
        assert math.isnan(early.value)
        assert early.low <= complete.value <= early.high


def test_a_bad_model_is_given_up_after_the_samples_that_fp32_gets_wrong() -> None:
    judge, fp32 = with_order(evaluator())
    wrong = round((1 - fp32.value) * COUNT)
    early = judge.score(table(-FP32), demand=demand(fp32.value))
    assert (early.complete, early.verdict) == (False, False)
    assert early.samples <= wrong + 2 * 20


def test_exact_scores_and_own_batches_are_complete() -> None:
    judge, fp32 = with_order(evaluator())
    bad = table(degraded(3.0))
    seen: list[NDArray[Any]] = []

    def watching(feed: Feed) -> Outputs:
        seen.append(feed["id"][:, 0])
        return bad.predict(feed)

    exact = judge.score(bad, demand=demand(fp32.value, accuracy="exact"))
    own = judge.score(FunctionModel(watching), demand=demand(fp32.value), own_batches=True)
    assert exact.complete
    assert own.complete
    assert exact.value == own.value == evaluator().score(bad).value
    assert np.array_equal(np.concatenate(seen), IDS[:, 0])


def test_what_is_not_worse_than_the_floor_is_known_exactly() -> None:
    judge, fp32 = with_order(evaluator())
    model = table(degraded(1.0))
    value = evaluator().score(model).value
    assert value < fp32.value
    kept = judge.score(model, demand=demand(fp32.value, floor=value))
    assert kept.complete
    assert kept.value == value
    above = judge.score(model, demand=demand(fp32.value, floor=math.nextafter(value, 1)))
    assert not above.complete
    assert above.high < fp32.value


def test_a_metric_that_breaks_down_does_not_hide_an_accuracy_that_reaches_the_floor() -> None:
    """Each metric must meet alone: the accuracy is the first, which a NaN of the second leaves as it is."""
    metrics = (MetricSpec(ComponentSpec("topk", {"k": 1})), MetricSpec(ComponentSpec("Loss", {})))
    judge, fp32 = with_order(evaluator(*metrics))
    scores = degraded(0.5)
    scores[0, (LABELS[0] + 1) % CLASSES] = math.inf  # wrong, and its loss is NaN
    complete = evaluator(*metrics).score(table(scores))
    assert math.isnan(complete.metrics["Loss"])
    assert 0 < complete.value < fp32.value
    targets = metric_targets(CriterionSpec("relative", 0.01, True), fp32.metrics, judge.metric_directions)
    kept = judge.score(table(scores), demand=Demand(tuple(targets.items()), complete.value, True, "verdict"))
    assert (kept.complete, kept.value) == (True, complete.value)


def test_each_metric_may_have_to_meet_alone() -> None:
    metrics = (MetricSpec(ComponentSpec("topk", {"k": 1})), MetricSpec(ComponentSpec("Loss", {})))
    judge, fp32 = with_order(evaluator(*metrics))
    targets = metric_targets(CriterionSpec("relative", 0.05), fp32.metrics, judge.metric_directions)
    worse_loss = table((0.2 * FP32).astype(np.float32))  # the same predictions, less sure of them
    early = judge.score(worse_loss, demand=Demand(tuple(targets.items()), accuracy="verdict"))
    assert early.verdict is False
    assert judge.score(table(FP32), demand=Demand(tuple(targets.items()), accuracy="verdict")).verdict is True


@pytest.mark.parametrize(
    ("metrics", "settings_"),
    [
        ((MetricSpec(ComponentSpec("F1", {})),), {}),
        ((MetricSpec(ComponentSpec("topk", {"k": 1})), MetricSpec(ComponentSpec("F1", {}))), {}),
        ((MetricSpec(ComponentSpec("topk", {"k": 1, "compare_label": False})),), {}),
        ((MetricSpec(ComponentSpec("topk", {"k": 1})),), {"names": ("topk",)}),
    ],
    ids=["F1", "one of two", "against fp32", "named metrics"],
)
def test_metrics_without_a_per_sample_form_run_in_full(
    metrics: tuple[MetricSpec, ...], settings_: dict[str, Any]
) -> None:
    judge = evaluator(*metrics, **settings_)
    if judge.needs_reference:
        judge.set_reference(table(FP32))
    judge.score_fp32(table(FP32))
    assert judge.order is None
    assert judge.score(table(-FP32), demand=demand(2.0)).complete


def test_a_model_whose_outputs_depend_on_the_batch_keeps_the_users_batches() -> None:
    judge = evaluator()
    centred = FunctionModel(lambda feed: [(scores := FP32[feed["id"][:, 0].astype(int)]) - scores.mean(axis=0)])
    judge.score_fp32(centred)
    assert judge.order is None


def test_batches_of_different_shapes_are_left_as_they_are() -> None:
    data = [(np.zeros((4, length), np.float32), np.zeros(4, int)) for length in (3, 5)]
    spec = EvaluationSpec(data, (MetricSpec(ComponentSpec("topk", {"k": 1})),))
    judge = Evaluator(spec, [InputInfo("x", "float32", ("n", "length"))], ["y"], 0)
    judge.score_fp32(FunctionModel(lambda feed: [np.eye(3, dtype=np.float32)[np.zeros(len(feed["x"]), int)]]))
    assert judge.order is None


# ------------------------------------------------------------------------------------------------------- the user's own


class Mean:
    """A metric of the user's: the share of the other classes that score lower than the label."""

    outcome_low, outcome_high = 0.0, 1.0

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.reset()

    def reset(self) -> None:
        self.seen: list[float] = []

    def outcomes(self, predictions: Any, labels: Any) -> NDArray[np.float64]:
        own = predictions[np.arange(len(labels)), labels][:, None]
        found: NDArray[np.float64] = self.scale * (predictions < own).mean(axis=1) * CLASSES / (CLASSES - 1)
        return found

    def update(self, predictions: Any, labels: Any) -> None:
        self.seen += self.outcomes(predictions, labels).tolist()

    def result(self) -> float:
        return float(np.mean(self.seen))


def test_a_metric_of_the_users_own_may_end_trials_early() -> None:
    judge, fp32 = with_order(evaluator(MetricSpec(Mean())))
    early = judge.score(table(-FP32), demand=demand(fp32.value))
    assert (early.complete, early.verdict) == (False, False)
    assert judge.score(table(FP32), demand=demand(fp32.value)).verdict is True


class MeanInFloat32(Mean):
    """As many write it: its result is off by some 1e-8, and by something else for another order of the samples."""

    def result(self) -> float:
        return float(np.array(self.seen, np.float32).mean())


class Inverse(Mean):
    """Has no value where all outcomes are 0."""

    higher_is_better = False

    def finish(self, mean: float) -> float:
        return 1 / mean

    def result(self) -> float:
        return self.finish(super().result())


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_a_users_arithmetic_decides_no_verdict_by_its_last_digits(noise: float) -> None:
    judge, _ = with_order(evaluator(MetricSpec(MeanInFloat32())))
    model = table(degraded(noise))
    complete = evaluator(MetricSpec(MeanInFloat32())).score(model)
    assert complete.value == evaluator(MetricSpec(Mean())).score_fp32(model).value
    on_target = judge.score(model, demand=demand(complete.value))
    assert (on_target.complete, on_target.verdict) == (True, True)
    assert judge.score(model, demand=demand(math.nextafter(complete.value, 1))).verdict is False


def test_a_metric_whose_result_is_not_made_of_its_outcomes_is_an_error() -> None:
    class Percent(Mean):
        def result(self) -> float:
            return 100 * super().result()

    with pytest.raises(DataError, match="its outcomes make up 0"):
        evaluator(MetricSpec(Percent())).score(table(FP32))


def test_a_metric_without_a_value_at_a_bound_ends_nothing_early_there() -> None:
    judge, fp32 = with_order(evaluator(MetricSpec(Inverse())))
    assert judge.order is not None
    scores = np.where(np.arange(CLASSES) == LABELS[:, None], -10, FP32).astype(np.float32)  # the outcome of all is 0,
    last = judge.order.rows[-1]  # but for the sample that comes last
    scores[last, LABELS[last]] = 10
    found = judge.score(table(scores), demand=demand(fp32.value, higher=False))
    assert found.verdict is False
    assert found.high > fp32.value


def test_outcomes_beyond_the_bounds_that_a_metric_says_are_an_error() -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        evaluator(MetricSpec(Mean(scale=2.0))).score_fp32(table(FP32))


# ------------------------------------------------------------------------------------------------------------ the order


def test_the_order_puts_what_fp32_gets_wrong_first_and_small_margins_before_large_ones() -> None:
    judge, fp32 = with_order(evaluator())
    assert judge.order is not None
    rows = judge.order.rows
    assert sorted(rows) == list(range(COUNT))
    right = (FP32.argmax(1) == LABELS)[rows]
    assert not right[: int((1 - fp32.value) * COUNT) - 1].any()
    others = FP32.copy()
    others[np.arange(COUNT), LABELS] = -np.inf
    margins = (FP32[np.arange(COUNT), LABELS] - others.max(1))[rows]
    assert np.all(np.diff(margins) >= 0)  # fewer samples than parts: sorted to the last one


def test_the_order_travels_small_and_whole() -> None:
    judge, _ = with_order(evaluator())
    assert judge.order is not None
    assert SampleOrder.decode(judge.order.encode()) == judge.order
    many = SampleOrder(np.random.default_rng(0).integers(0, 256, 50_000).astype(np.uint8).tobytes(), (50_000.0,))
    assert len(many.encode()) < 70_000


def test_another_worker_scores_in_the_order_that_it_is_sent() -> None:
    judge, fp32 = with_order(evaluator())
    assert judge.order is not None
    other = evaluator()
    other.use(SampleOrder.decode(judge.order.encode()))
    model = table(degraded(1.5))
    mine, theirs = (each.score(model, demand=demand(fp32.value)) for each in (judge, other))
    assert (mine.samples, mine.low, mine.high) == (theirs.samples, theirs.low, theirs.high)


def test_the_order_of_other_data_is_refused() -> None:
    judge, _ = with_order(evaluator())
    assert judge.order is not None
    with pytest.raises(DataError, match="200"):
        evaluator(data=DATA[:-1]).use(judge.order)
