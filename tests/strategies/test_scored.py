"""mse, mse_v2 and hawq_v2: the order comes from probes, not from trials."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from distune.errors import UsageError
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import ProbeStage
from tests.strategies.harness import PLAIN, AdditiveModel, mixed_space, play

PLANTED = AdditiveModel({"op3": 0.3}, default_cost=0.0001)


def loss(output: object, target: object) -> float:
    return 0.0


def test_mse_finds_the_planted_op_with_one_probe_and_far_fewer_trials_than_basic() -> None:
    many = mixed_space(24, PLAIN)
    played = play("mse", many, PLANTED)
    assert played.quantized() == set(many.groups) - {"op3"}
    assert [(probe.kind, probe.split) for probe in played.probes] == [("op_sensitivity", "ops")]
    by_tensor = play("mse", many, PLANTED, score="tensor")
    assert by_tensor.quantized() == played.quantized()
    assert [(probe.kind, probe.split) for probe in by_tensor.probes] == [("op_mse", "batches")]
    assert len(played.trials) == 2  # default and the first prefix
    assert len(play("basic", many, PLANTED).trials) > 2 * len(played.trials)


@pytest.mark.parametrize("strategy", ["mse", "hawq_v2"])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_order_is_by_score_whatever_the_direction_of_the_metric(strategy: str, higher_is_better: bool) -> None:
    model = AdditiveModel({"op1": 0.02, "op4": 0.04}, default_cost=0.0, higher_is_better=higher_is_better)
    kwargs = {"hawq_v2_loss": loss} if strategy == "hawq_v2" else {}
    played = play(strategy, mixed_space(6, PLAIN), model, **kwargs)
    accumulated = next(stage for stage in played.stages if stage.name.startswith("accumulated"))
    assert accumulated.order[:2] == ("op4", "op1")
    assert played.quantized() == {"op0", "op2", "op3", "op5"}


def test_the_error_probe_keeps_the_statistics_of_what_it_quantizes() -> None:
    probe = play("mse", mixed_space(6, PLAIN), PLANTED).probes[0]
    assert probe.config.is_fp32
    assert probe.config.sampling_size == 100


def test_mse_v2_falls_back_until_met_and_reverts_what_was_not_needed() -> None:
    # op0 goes first since its impact is the highest, but op1 and op2 together are what the target needs.
    model = AdditiveModel({"op0": 0.012, "op1": 0.010, "op2": 0.009}, default_cost=0.0)
    played = play("mse_v2", mixed_space(6, PLAIN), model, tolerance=0.0135)
    labels = [(trial.stage.split()[0], trial.label) for trial in played.trials]
    assert labels[:3] == [("default", "default"), ("fallback", "op0"), ("fallback", "op1")]
    assert played.quantized() == {"op2", "op3", "op4", "op5"}
    assert any(stage.name == "revert of op1" for stage in played.stages)
    assert {probe.kind for probe in played.probes} == {"op_sensitivity"}


def test_mse_v2_keeps_the_reverted_config_that_still_meets() -> None:
    @dataclass(frozen=True)
    class Misleading(AdditiveModel):
        """The first probe points at op5, which does not matter."""

        def probe(self, stage: ProbeStage, space: TuningSpace) -> dict[str, float]:
            scores = super().probe(stage, space)
            if stage.args["direction"] == "fallback":
                scores["op5"] = -1.0
            return {group: score for group, score in scores.items() if group in stage.ops}

    played = play("mse_v2", mixed_space(6, PLAIN), Misleading({"op3": 0.3}, default_cost=0.0))
    assert [trial.label for trial in played.trials] == ["default", "op5", "op3", "op5"]
    assert played.quantized() == {"op0", "op1", "op2", "op4", "op5"}


def test_mse_v2_passes_confidence_batches_on() -> None:
    played = play("mse_v2", mixed_space(4, PLAIN), PLANTED, confidence_batches=5)
    assert {probe.batches for probe in played.probes} == {5}


def test_hawq_v2_without_a_loss_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="'hawq_v2_loss' is required"):
        play("hawq_v2", mixed_space(4, PLAIN), PLANTED)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'confidence_batches'"):
        play("mse_v2", mixed_space(4, PLAIN), PLANTED, confidence_batch=5)


def test_hawq_v2_on_a_backend_without_gradients_says_what_to_do() -> None:
    class Silent(AdditiveModel):
        def probe(self, stage: ProbeStage, space: TuningSpace) -> dict[str, float]:
            return {}

    with pytest.raises(UsageError, match="PyTorch backend"):
        play("hawq_v2", mixed_space(4, PLAIN), Silent({"op3": 0.3}), hawq_v2_loss=loss)
