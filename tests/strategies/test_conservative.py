"""Conservative: op types one after the other, kept where they meet, and a report of what each costs."""

from __future__ import annotations

import pytest

from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play, space

TWO_TYPES = space({"conv": "Conv", "matmul": "MatMul"}, PLAIN)


@pytest.mark.parametrize(
    ("accuracies", "quantized"),
    [
        ([1, 0.9, 1.1, 0.8], {"conv"}),
        ([1, 0.9, 1.1, 1.2], {"conv", "matmul"}),
        ([1, 0.9, 0.8, 1.1], {"matmul"}),
    ],
)
def test_a_type_stays_quantized_where_it_meets(accuracies: list[float], quantized: set[str]) -> None:
    assert play("conservative", TWO_TYPES, AdditiveModel(), accuracies=accuracies).quantized() == quantized


def test_the_fp32_start_is_no_success() -> None:
    played = play("conservative", TWO_TYPES, AdditiveModel(default_cost=0.5))
    assert played.trials[0].config.is_fp32
    assert played.winner is None
    assert played.book.best is played.trials[1]


def test_convolutions_then_matrix_products_then_the_others() -> None:
    ops = {"a": "Add", "l": "Linear", "g": "Gemm", "c": "Conv", "f": "FusedConv"}
    played = play("conservative", space(ops, PLAIN), AdditiveModel({"a": 0.5}))
    assert [trial.label for trial in played.trials] == [
        "nothing quantized",
        "Conv",
        "FusedConv",
        "Linear",
        "Gemm",
        "Add",
    ]


def test_the_report_says_what_each_type_costs() -> None:
    played = play("conservative", mixed_space(5, PLAIN), AdditiveModel({"op1": 0.3}))
    report = played.told[-1]
    assert "Conv: +0.30" in report
    assert "left in fp32" in report
    assert "MatMul: +0.001 " in report


def test_types_that_the_budget_does_not_reach_are_named() -> None:
    played = play("conservative", mixed_space(5, PLAIN), AdditiveModel({"op1": 0.3}), max_trials=2)
    assert "MatMul: not tried" in played.told[-1]


def test_a_quantized_type_is_calibrated_although_it_was_added_to_fp32() -> None:
    played = play("conservative", mixed_space(5, PLAIN), AdditiveModel({"op1": 0.3}))
    assert [trial.config.sampling_size for trial in played.trials] == [0, 100, 100, 100]
