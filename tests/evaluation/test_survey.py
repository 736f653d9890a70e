"""fp32 scored in shards: what several ranks say of theirs, put together, is what one says of all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distune.config.job import ComponentSpec, MetricSpec
from distune.errors import DataError
from distune.evaluation.finite import NonFinite, Watch
from distune.evaluation.survey import Survey
from distune.metrics import create_metric
from distune.metrics.per_sample import Outcomes, form_of
from tests.evaluation.test_verdict import DATA, FP32, IDS, LABELS, Mean, evaluator, table

TOP_1, LOSS = MetricSpec(ComponentSpec("topk", {"k": 1})), MetricSpec(ComponentSpec("Loss", {}))
METRICS = {
    "top-1": (TOP_1,),
    "loss": (LOSS,),
    "perplexity": (MetricSpec(ComponentSpec("Perplexity", {})),),
    "weighted": (replace(TOP_1, weight=0.3), MetricSpec(ComponentSpec("topk", {"k": 2}), 0.7)),
    "each its own": (TOP_1, LOSS),
}
RAGGED = [(IDS[start:stop], LABELS[start:stop]) for start, stop in ((0, 70), (70, 100), (100, 199), (199, 200))]


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("data", [DATA, RAGGED], ids=["even batches", "ragged batches"])
@pytest.mark.parametrize("metrics", METRICS.values(), ids=METRICS)
def test_shards_say_to_the_last_bit_what_one_pass_says(metrics: tuple[MetricSpec, ...], data: Any, shards: int) -> None:
    alone = evaluator(*metrics, data=data)
    whole = alone.score_fp32(table(FP32))
    surveys = [
        evaluator(*metrics, data=data).survey_fp32(table(FP32), shard, shards).encode() for shard in range(shards)
    ]
    joined = evaluator(*metrics, data=data)
    score = joined.score_fp32(table(FP32), surveys=surveys[::-1])
    assert replace(score, evaluate_s=0, inference_s=0) == replace(whole, evaluate_s=0, inference_s=0)
    assert joined.order == alone.order
    assert joined.order is not None


def test_each_batch_is_inferred_once_by_all_shards_together() -> None:
    models = [table(FP32) for _ in range(3)]
    for shard, model in enumerate(models):
        evaluator().survey_fp32(model, shard, 3)
    assert [model.runs for model in models] == [4, 3, 3]


def test_without_an_order_only_the_score_is_put_together() -> None:
    survey = evaluator().survey_fp32(table(FP32), 0, 1).encode()
    judge, model = evaluator(), table(FP32)
    score = judge.score_fp32(model, in_order=False, surveys=[survey])
    assert score.value == evaluator().score_fp32(table(FP32)).value
    assert (judge.order, model.runs) == (None, 0)


@pytest.mark.parametrize(
    "metrics",
    [
        (MetricSpec(ComponentSpec("F1", {})),),
        (MetricSpec(ComponentSpec("topk", {"k": 1, "compare_label": False})),),
        (MetricSpec(Mean()),),
    ],
    ids=["no sum", "against fp32", "the user's own arithmetic"],
)
def test_what_need_not_add_up_exactly_is_left_to_one_rank(metrics: tuple[MetricSpec, ...]) -> None:
    assert not evaluator(*metrics).fp32_in_shards
    assert evaluator().fp32_in_shards


def test_ranks_with_other_data_are_found_out() -> None:
    fewer = evaluator(data=DATA[:-1]).survey_fp32(table(FP32), 0, 1).encode()
    with pytest.raises(DataError, match="differ between the ranks: 200 samples in 10 batches here, 180 in 9"):
        evaluator().score_fp32(table(FP32), surveys=[fewer])


def test_a_survey_tells_which_data_it_is_of_whatever_its_shard() -> None:
    def data(batches: Any, shard: int) -> str:
        return evaluator(data=batches).survey_fp32(table(FP32), shard, 3).data

    assert len({data(DATA, shard) for shard in range(3)}) == 1
    assert data(DATA[::-1], 0) != data(DATA, 0)
    assert data([*DATA[:-1], (DATA[-1][0] - 1, DATA[-1][1])], 0) != data(DATA, 0), "other inputs, the same labels"


def test_a_metric_whose_margins_are_all_infinite_leaves_the_order_to_the_others() -> None:
    def surveyed(*margins: Any) -> Survey:
        forms = [form_of(create_metric(TOP_1.metric), f"top-1 {index}") for index in range(len(margins))]
        survey = Survey([form for form in forms if form is not None], [True] * len(margins))
        survey.take(0, [Outcomes(np.ones(40), np.ones(40))] * len(margins), margins)
        return survey

    known, endless = np.random.default_rng(1).normal(size=40), np.full(40, np.inf)
    assert surveyed(known, endless).order().parts == surveyed(known).order().parts
    alone, beside = (survey.decisive(np.arange(40), 4) for survey in (surveyed(known), surveyed(known, endless)))
    assert alone is not None
    assert beside is not None
    assert alone.chosen == beside.chosen


def test_a_mean_over_nothing_is_said_as_one_pass_says_it() -> None:
    padding = [(ids, np.full_like(labels, -100)) for ids, labels in DATA]
    surveys = [evaluator(LOSS, data=padding).survey_fp32(table(FP32), shard, 2).encode() for shard in range(2)]
    for known in ([], surveys):
        with pytest.raises(DataError, match="Loss: no samples"):
            evaluator(LOSS, data=padding).score_fp32(table(FP32), surveys=known)


def test_what_is_not_finite_is_named_in_one_order() -> None:
    counts = {"mask": (1, 0), "image": (0, 2)}
    for found in (counts, dict(reversed(counts.items()))):
        assert str(NonFinite(found)) == "image (2 infinite), mask (1 NaN)"


def test_what_is_not_finite_is_counted_over_the_shards() -> None:
    broken = FP32.copy()
    broken[[3, 150], 0] = np.nan
    whole = Watch(["y"])
    evaluator().score_fp32(table(broken), watch=whole)
    joined = Watch(["y"])
    for shard in range(2):
        part = Watch(["y"])
        evaluator().survey_fp32(table(broken), shard, 2, part)
        joined.add(*part.counts)
    assert joined.warnings == whole.warnings
    assert whole.warnings
