"""Metrics against their definitions, in any partition into batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from distune.config.job import ComponentSpec
from distune.errors import DataError, UserCodeError
from distune.metrics import Metric, PerSampleMetric, create_metric, metric_registry, metrics

RNG = np.random.default_rng(11)
LOGITS = RNG.normal(size=(50, 7)).astype(np.float32)
CLASSES = RNG.integers(0, 7, 50)
NUMBERS = RNG.normal(size=50).astype(np.float32)
TARGETS = (NUMBERS + RNG.normal(size=50)).astype(np.float32)


def make(name: str, **args: Any) -> Metric:
    return create_metric(ComponentSpec(name, args))


def result(metric: Metric, outputs: Any, labels: Any, batch: int = 50) -> float:
    metric.reset()
    for start in range(0, len(labels), batch):
        metric.update(outputs[start : start + batch], labels[start : start + batch])
    return metric.result()


@pytest.mark.parametrize("name", ["topk", "Accuracy", "F1", "Loss", "Perplexity"])
@pytest.mark.parametrize("batch", [1, 7])
def test_classification_does_not_depend_on_the_batches(name: str, batch: int) -> None:
    assert result(make(name), LOGITS, CLASSES, batch) == pytest.approx(result(make(name), LOGITS, CLASSES), rel=1e-6)


@pytest.mark.parametrize("name", ["MSE", "RMSE", "MAE", "Pearson", "Spearman"])
@pytest.mark.parametrize("batch", [1, 7])
def test_regression_does_not_depend_on_the_batches(name: str, batch: int) -> None:
    assert result(make(name), NUMBERS, TARGETS, batch) == result(make(name), NUMBERS, TARGETS)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_topk_is_a_stable_sort_by_falling_score(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (6, 7)).astype(np.float32)  # many ties
    wanted = rng.integers(0, 7, 6)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert result(make("topk", k=k), scores, wanted) == np.mean([w in b for w, b in zip(wanted, best, strict=True)])


@pytest.mark.parametrize("name", ["topk", "Accuracy"])
def test_a_model_that_gives_nan_is_wrong_everywhere(name: str) -> None:
    assert result(make(name), np.full((7, 7), np.nan, np.float32), np.arange(7)) == 0
    assert result(make("topk", k=3), np.full((7, 7), np.nan, np.float32), np.arange(7)) == 0


@pytest.mark.parametrize("name", ["Loss", "Perplexity", "MSE", "RMSE", "MAE", "ROC", "Pearson", "Spearman"])
def test_a_number_made_of_nan_is_nan(name: str) -> None:
    outputs = np.full((4, 2) if name in ("Loss", "Perplexity") else 4, np.nan, np.float32)
    assert math.isnan(result(make(name), outputs, np.array([0, 1, 0, 1])))


@pytest.mark.parametrize("shape", [(10,), (10, 1)])
def test_a_binary_classifier_that_gives_nan_is_wrong_where_class_0_is_right_as_well(shape: tuple[int, ...]) -> None:
    probabilities, wanted = np.full(shape, np.nan, np.float32), np.arange(10) % 2
    assert result(make("Accuracy"), probabilities, wanted) == 0
    assert result(make("F1", average="macro"), probabilities, wanted) == 0
    assert result(make("F1", average="weighted"), probabilities, wanted) == 0
    with pytest.raises(DataError, match=r"labels go from -1 to 1 but the model has 2 classes"):
        result(make("Accuracy"), probabilities, 2 * wanted - 1)


def test_accuracy_of_scores_ids_and_probabilities() -> None:
    assert result(make("Accuracy"), LOGITS, CLASSES) == result(make("topk"), LOGITS, CLASSES)
    assert result(make("Accuracy"), LOGITS.argmax(1), CLASSES) == result(make("topk"), LOGITS, CLASSES)
    assert result(make("Accuracy"), np.array([[0.2], [0.7], [0.9]]), np.array([0, 1, 0])) == pytest.approx(2 / 3)
    tokens, ids = RNG.normal(size=(4, 5, 3)), RNG.integers(0, 3, (4, 5))
    assert result(make("Accuracy"), tokens, ids) == pytest.approx(np.mean(tokens.argmax(2) == ids))
    assert result(make("Accuracy"), LOGITS, CLASSES[:, np.newaxis]) == result(make("topk"), LOGITS, CLASSES)


def test_errors_are_means() -> None:
    difference = NUMBERS.astype(np.float64) - TARGETS.astype(np.float64)
    assert result(make("MSE"), NUMBERS, TARGETS) == pytest.approx(np.mean(difference**2), rel=1e-12)
    assert result(make("RMSE"), NUMBERS, TARGETS) == pytest.approx(math.sqrt(np.mean(difference**2)), rel=1e-12)
    assert result(make("MAE"), NUMBERS[:, np.newaxis], TARGETS) == pytest.approx(np.mean(np.abs(difference)), rel=1e-12)


def test_loss_is_cross_entropy_without_padding() -> None:
    expected = -log_softmax(LOGITS.astype(np.float64), axis=1)[np.arange(50), CLASSES].mean()
    assert result(make("Loss"), LOGITS, CLASSES) == pytest.approx(expected, rel=1e-6)
    assert result(make("Perplexity"), LOGITS, CLASSES) == pytest.approx(math.exp(expected), rel=1e-6)
    padded = np.concatenate([CLASSES, np.full(10, -100)])
    assert result(make("Loss"), np.concatenate([LOGITS, LOGITS[:10]]), padded) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_losses_of_many_classes_are_as_exact_as_the_logits(dtype: Any) -> None:
    logits = RNG.normal(scale=0.2, size=(8, 100_000)).astype(dtype)  # 100,000 terms do not fit into float16 at all
    expected = -log_softmax(logits.astype(np.float64), axis=1)[:, 0]
    metric = make("Loss")
    assert isinstance(metric, PerSampleMetric)
    np.testing.assert_allclose(metric.outcomes(logits, np.zeros(8, np.int64)), expected, rtol=1e-7)


def test_labels_that_are_no_class_are_named_and_padding_is_explained() -> None:
    with pytest.raises(DataError, match=r"Loss: labels -1, 7 are none of the 7 classes, 0 to 6.*ignore_index.*-100"):
        result(make("Loss"), LOGITS, np.r_[-1, 7, -1, CLASSES[3:]])
    padded = np.r_[-1, -1, CLASSES[2:]]
    assert result(make("Loss", ignore_index=-1), LOGITS, padded) == result(make("Loss"), LOGITS[2:], CLASSES[2:])


def test_roc_and_f1() -> None:
    scores, truth = np.array([0.1, 0.4, 0.35, 0.8], np.float32), np.array([0, 0, 1, 1])
    assert result(make("ROC"), scores, truth) == 0.75
    assert result(make("AUC", task="dlrm"), np.stack([-scores, scores], 1), truth) == 0.75
    assert result(make("F1"), np.array([0, 1, 1, 1]), truth) == pytest.approx(0.8)
    near = np.array([[0, 2048], [-1, 2048]], np.float16)  # 2,049 is no number of float16
    assert result(make("ROC"), near, np.array([0, 1])) == 1
    with pytest.raises(DataError, match="ROC"):
        result(make("ROC"), LOGITS, CLASSES)


def test_what_a_model_answers_does_not_choose_the_f1_that_is_measured() -> None:
    truth = np.repeat([0, 1], 50)
    of_two, of_three = (np.eye(classes, dtype=np.float32)[truth] for classes in (2, 3))
    of_two[[0, 50]] = np.nan
    of_three[50] = [0, 0, 1]  # a class that no label has: no third F1, of 0, comes into the mean
    assert result(make("F1"), of_two, truth) == pytest.approx(98 / 100)
    assert result(make("F1", average="binary"), of_three, truth) == pytest.approx(98 / 99)
    assert result(make("F1"), of_three, truth) == pytest.approx((1 + 98 / 99) / 2)
    assert result(make("F1"), of_three.argmax(1), truth) == pytest.approx(98 / 99)  # ids: by the labels alone


def test_f1_of_each_average_is_that_of_scikit_learn_where_predictions_are_labels() -> None:
    ids = LOGITS.argmax(1)
    assert set(ids) <= set(CLASSES)
    for average, expected in (("auto", "macro"), ("macro",) * 2, ("micro",) * 2, ("weighted",) * 2):
        assert result(make("F1", average=average), LOGITS, CLASSES) == f1_score(CLASSES, ids, average=expected)
    with pytest.raises(DataError, match="F1: average binary is of two classes, 1 and another, and the labels have 7"):
        result(make("F1", average="binary"), LOGITS, CLASSES)


def test_a_constant_output_correlates_with_nothing() -> None:
    assert math.isnan(result(make("Spearman"), np.zeros(50), TARGETS))
    assert math.isnan(result(make("Pearson"), np.full(50, np.nan), TARGETS))


@pytest.mark.parametrize("name", ["topk", "Accuracy", "MSE", "MAE", "RMSE"])
def test_per_sample_outcomes_decide_the_result(name: str) -> None:
    metric = make(name)
    assert isinstance(metric, PerSampleMetric)
    outputs, labels = (LOGITS, CLASSES) if name in ("topk", "Accuracy") else (NUMBERS, TARGETS)
    outcomes = metric.outcomes(outputs, labels)
    assert (outcomes.shape, outcomes.dtype) == ((50,), np.float64)
    assert result(metric, outputs, labels, 8) == metric.finish(float(outcomes.mean()))


def test_direction() -> None:
    lower = {name for name in metrics() if not make(name).higher_is_better}
    assert lower == {"MSE", "RMSE", "MAE", "Loss", "Perplexity"}


def test_misfits_are_named() -> None:
    with pytest.raises(DataError, match=r"labels go from 0 to 7 but the model has 7 classes.*LabelShift"):
        result(make("topk"), LOGITS, np.r_[CLASSES[:-1], 7])
    with pytest.raises(DataError, match=r"float32\[50, 7\].*float64\[50\]"):
        result(make("topk"), LOGITS, np.full(50, 0.5))
    with pytest.raises(DataError, match="cannot be compared value by value"):
        result(make("MSE"), NUMBERS, TARGETS[:, np.newaxis].repeat(2, 1))
    with pytest.raises(DataError, match="k must be an integer"):
        make("topk", k=0)
    with pytest.raises(DataError, match="the model gives 2"):
        make("topk").update([LOGITS, LOGITS], CLASSES)
    with pytest.raises(DataError, match="needs labels"):
        make("topk").update(LOGITS, None)
    with pytest.raises(DataError, match="no samples"):
        make("topk").result()


def test_metrics_of_the_users_own() -> None:
    metric = create_metric(ComponentSpec("tests.data.user_components:Misses"))
    assert not metric.higher_is_better
    assert result(metric, LOGITS, LOGITS.argmax(1)) == 0
    assert result(metric, LOGITS, CLASSES, 7) == 50 * (1 - result(make("topk"), LOGITS, CLASSES))
    with pytest.raises(DataError, match="lacks update, reset"):
        create_metric(type("Half", (), {"result": lambda self: 1.0})())

    class Vague:
        def update(self, predictions: Any, labels: Any) -> None: ...
        def reset(self) -> None: ...
        def result(self) -> Any:
            return None

    with pytest.raises(UserCodeError, match="must return one number; it returned a NoneType"):
        result(create_metric(Vague), LOGITS, CLASSES)


def test_a_new_metric_is_one_decorated_class() -> None:
    @metric_registry("Share")
    class Share(PerSampleMetric):
        def outcomes(self, outputs: Any, labels: Any) -> Any:
            return np.full(len(labels), 0.25)

    assert "Share" in metrics()
    assert result(make("Share"), LOGITS, CLASSES) == 0.25


def test_topk_of_all_classes_proves_nothing_and_is_refused() -> None:
    with pytest.raises(DataError, match="every prediction would be right"):
        create_metric(ComponentSpec("topk", {"k": 3})).update(np.eye(3), np.arange(3))
