"""Auto: default, conservative, basic, with one memory."""

from __future__ import annotations

from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play


def test_a_default_that_meets_is_all() -> None:
    assert len(play("auto", mixed_space(), AdditiveModel()).trials) == 1


def test_what_one_of_them_had_judged_costs_the_other_nothing() -> None:
    played = play("auto", mixed_space(5, PLAIN), AdditiveModel({"op4": 0.5}))
    # With Add too it is the default again, and without Add alone it is what conservative found.
    assert [trial.label for trial in played.trials] == ["default", "Conv", "MatMul"]
    assert played.quantized() == {"op0", "op1", "op2", "op3"}


def test_basic_goes_on_after_conservative_met_and_finds_the_faster_model() -> None:
    played = play("auto", mixed_space(8, PLAIN), AdditiveModel({"op1": 0.3}))
    conservative = [trial for trial in played.book.met if trial.stage.startswith("op type")]
    assert conservative  # matmuls alone meet
    assert played.quantized() == {"op0", "op2", "op3", "op4", "op5", "op6", "op7"}


def test_basic_falls_back_from_its_own_best_not_from_what_conservative_left_in_fp32() -> None:
    played = play("auto", mixed_space(8, PLAIN), AdditiveModel({"op1": 0.3}))
    instance = next(stage for stage in played.stages if stage.name.startswith("instance-wise"))
    assert instance.total is None
    assert len(list(instance.candidates)) == 8


def test_a_late_success_of_basic_ends_the_run_and_an_early_one_of_conservative_does_not() -> None:
    played = play("auto", mixed_space(8, PLAIN), AdditiveModel({"op1": 0.3}), max_trials=30)
    assert played.trials[-1].met
    assert len(played.trials) < 30
