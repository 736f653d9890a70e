"""Weight-only: the presets come first, then algorithm and bits layer by layer, then what every approach has."""

from __future__ import annotations

import math

import pytest

from distune.space.capability import OpInfo
from distune.space.op_config import FP32, OpConfig, TensorConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import ProbeStage
from distune.strategies.weight_only import PRESETS, preset_stage
from tests.strategies.harness import AdditiveModel, Played, play

NAMES = (
    "RTN_G32ASYM",
    "GPTQ_G32ASYM",
    "GPTQ_G32ASYM_DISABLE_LAST_MATMUL",
    "GPTQ_G128ASYM",
    "AWQ_G32ASYM",
)
LOSS = {"RTN": 1.0, "AWQ": 0.8, "GPTQ": 0.5}


def option(algorithm: str, bits: int, group_size: int, scheme: str) -> OpConfig:
    return OpConfig("weight_only", None, TensorConfig("int", scheme, "per_channel", algorithm, bits, group_size))


def weight_only_space(
    algorithms: tuple[str, ...] = ("RTN", "GPTQ", "AWQ"), bits: tuple[int, ...] = (4, 8), count: int = 6
) -> TuningSpace:
    """MatMuls in a row, each by itself."""
    options = tuple(
        option(algorithm, width, size, scheme)
        for width in bits
        for algorithm in algorithms
        for scheme in ("sym", "asym")
        for size in (32, 128)
    )
    ops = (OpInfo(f"op{i}", "MatMul", (*options, FP32), f"op{i}", True) for i in range(count))
    return TuningSpace(tuple(ops), sampling_sizes=(16,))


def loss(chosen: OpConfig) -> float:
    """Algorithms differ, 8 bits cost nothing, larger groups cost more."""
    weight = chosen.weight
    assert weight is not None
    if weight.bits == 8:
        return 0.0
    return 0.01 * LOSS[weight.algorithm] * (1.2 if weight.group_size == 128 else 1.0)


def stages(played: Played) -> list[str]:
    return list(dict.fromkeys(trial.stage for trial in played.trials))


def test_the_presets_are_those_of_the_documents_in_their_order() -> None:
    stage = preset_stage(weight_only_space(), 16)
    configs = {candidate.label: candidate.config for candidate in stage.candidates}  # type: ignore[union-attr]
    assert tuple(configs) == NAMES == tuple(preset.name for preset in PRESETS)
    for name, config in configs.items():
        weights = [config.weight for _, config in config.ops if config.weight is not None]
        assert {(w.algorithm, w.bits, w.scheme) for w in weights} == {(name.split("_")[0], 4, "asym")}
        assert {w.group_size for w in weights} == {128 if "G128" in name else 32}
        assert config.sampling_size == (0 if name.startswith("RTN") else 16)
        assert (config.by_name["op5"] == FP32) == name.endswith("DISABLE_LAST_MATMUL")


def test_only_presets_that_the_users_rules_leave_are_tried() -> None:
    stage = preset_stage(weight_only_space(("RTN", "AWQ")), 16)
    assert [candidate.label for candidate in stage.candidates] == ["RTN_G32ASYM", "AWQ_G32ASYM"]  # type: ignore[union-attr]
    assert not preset_stage(weight_only_space(bits=(8,)), 16).candidates


@pytest.mark.parametrize("strategy", ["basic", "auto"])
def test_the_presets_come_before_everything_else_and_the_first_that_meets_ends_the_run(strategy: str) -> None:
    model = AdditiveModel(default_cost=0.0, option_cost=loss)
    played = play(strategy, weight_only_space(), model, tolerance=0.035)
    assert [(trial.stage, trial.label) for trial in played.trials] == [
        ("weight-only presets", "RTN_G32ASYM"),
        ("weight-only presets", "GPTQ_G32ASYM"),
    ]


def test_layers_that_need_it_get_more_bits_and_the_others_keep_theirs() -> None:
    model = AdditiveModel({"op2": 0.0}, default_cost=0.0, option_cost=loss)
    played = play("basic", weight_only_space(), model, tolerance=0.02)
    assert stages(played)[:2] == ["weight-only presets", "default"]
    assert played.winner is not None
    assert played.winner.stage == "weight-only bits by layer"
    widths = [option.weight.bits for _, option in played.winner.config.ops if option.weight is not None]
    assert sorted(widths) == [4, 4, 4, 8, 8]  # the best preset left the last MatMul in fp32, and nothing else fell back
    assert played.winner.config.sampling_size == 16


def test_one_algorithm_that_breaks_a_layer_does_not_make_it_the_neediest() -> None:
    """RTN breaks op1; GPTQ and AWQ do it no more harm than the others."""

    class Overflowing(AdditiveModel):
        def probe(self, stage: ProbeStage, space: TuningSpace) -> dict[str, float]:
            assert stage.quantized is not None
            weight = stage.quantized.by_name["op1"].weight
            broken = {"op1": math.nan} if weight is not None and weight.algorithm == "RTN" else {}
            return {**super().probe(stage, space), **broken}

    def narrow(chosen: OpConfig) -> float:
        return 0.0 if chosen.weight is not None and chosen.weight.bits == 8 else 0.001

    model = Overflowing({"op2": 0.01}, default_cost=0.0, option_cost=narrow)
    played = play("basic", weight_only_space(), model, tolerance=0.01)
    grown = next(list(stage.candidates) for stage in played.stages if stage.name == "weight-only bits by layer")
    first = grown[0].config  # type: ignore[union-attr]
    assert [name for name, option in first.ops if option.weight is not None and option.weight.bits == 8] == ["op2"]


def test_each_layer_gets_the_algorithm_that_suits_it() -> None:
    """The probe knows which algorithm is best where, no preset is."""

    class Suited(AdditiveModel):
        def error(self, config):  # type: ignore[no-untyped-def]
            best = {"op0": "AWQ", "op1": "RTN", "op2": "GPTQ"}
            weights = {name: option.weight for name, option in config.ops if option.weight is not None}
            return sum(0.02 for name, weight in weights.items() if weight.algorithm != best[name])

    played = play("basic", weight_only_space(count=3, bits=(4,)), Suited(), tolerance=0.01)
    assert played.winner is not None
    assert played.winner.stage == "weight-only algorithm by layer"
    found = [option.weight.algorithm for _, option in played.winner.config.ops if option.weight is not None]
    assert found == ["AWQ", "RTN", "GPTQ"]


def test_the_same_decisions_for_any_number_of_workers() -> None:
    model = AdditiveModel({"op2": 0.004}, default_cost=0.0, option_cost=loss)
    alone = play("basic", weight_only_space(), model, tolerance=0.006, max_trials=40)
    several = play("basic", weight_only_space(), model, tolerance=0.006, max_trials=40, ahead=3)
    assert alone.hashes == several.hashes


def test_a_layer_falls_back_where_no_number_of_bits_helps() -> None:
    model = AdditiveModel({"op3": 0.5}, default_cost=0.0)
    played = play("basic", weight_only_space(), model, tolerance=0.01)
    assert played.quantized() == {"op0", "op1", "op2", "op4", "op5"}
