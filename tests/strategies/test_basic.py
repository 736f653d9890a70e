"""Basic: the order of the stages and the base of each."""

from __future__ import annotations

from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play


def test_a_second_sampling_size_begins_with_its_own_default() -> None:
    played = play(
        "basic", mixed_space(5, PLAIN, sampling_sizes=(10, 20)), AdditiveModel(default_cost=0.5), max_trials=60
    )
    sizes = {trial.config.sampling_size for trial in played.trials if trial.stage.startswith("instance-wise")}
    assert sizes == {10, 20}


def test_instance_wise_fallback_orders_the_accumulated_one() -> None:
    model = AdditiveModel({"op1": 0.02, "op3": 0.05}, default_cost=0.0)
    played = play("basic", mixed_space(6, PLAIN), model)
    accumulated = next(stage for stage in played.stages if stage.name.startswith("accumulated"))
    assert accumulated.order[:2] == ("op3", "op1")
    assert played.quantized() == {"op0", "op2", "op4", "op5"}
