"""What the user's rules leave, and which configs count as the same."""

from __future__ import annotations

import pytest

from distune.config.job import Constraint
from distune.errors import SpaceError
from distune.space.capability import Capability, Recipe
from distune.space.op_config import FP32, TuningConfig
from distune.space.tuning_space import TuningSpace, build_space
from tests import synthetic


def build(*rules: Constraint) -> TuningSpace:
    return build_space(synthetic.capability(), rules, "static", {}, (100,))


def dtypes(space: TuningSpace, op: str) -> set[str]:
    return {o.activation.dtype if o.activation else o.mode for o in space.op[op].options}


def test_the_default_is_the_first_option_everywhere() -> None:
    config = build().default()
    assert all(option == synthetic.CONV[0] for name, option in config.ops if name.startswith("conv"))
    assert config.sampling_size == 100


def test_a_quantized_dtype_beside_fp32_allows_both() -> None:
    space = build(Constraint("optype", "Conv", activation={"dtype": ("uint8", "fp32")}))
    assert dtypes(space, "conv0") == {"uint8", "fp32"}


def test_fp32_alone_excludes_the_op_from_quantization() -> None:
    space = build(Constraint("op", "conv0", activation={"dtype": ("fp32",)}, weight={"dtype": ("fp32",)}))
    assert space.op["conv0"].options == (FP32,)
    assert not space.default().by_name["conv0"].is_quantized


def test_a_quantized_dtype_alone_still_allows_fallback() -> None:
    assert FP32 in build(Constraint("model", "", activation={"dtype": ("int8",)})).op["conv0"].options


def test_the_narrower_rule_wins() -> None:
    space = build(
        Constraint("op", "conv0", activation={"scheme": ("sym",)}),
        Constraint("model", "", activation={"scheme": ("asym",)}),
        Constraint("optype", "Conv", activation={"dtype": ("int8",)}),
    )
    first = space.op["conv0"].options[0].activation
    other = space.op["conv1"].options[0].activation
    assert first is not None
    assert other is not None
    assert (first.dtype, first.scheme) == ("int8", "sym")
    assert (other.dtype, other.scheme) == ("int8", "asym")


def test_an_option_that_an_op_lacks_is_dropped_with_a_warning() -> None:
    space = build(Constraint("optype", "Conv", activation={"algorithm": ("minmax", "kl")}, where="cfg.yaml:3:5"))
    assert any("cfg.yaml:3:5" in warning and "kl" in warning for warning in space.warnings)


def test_where_nothing_remains_it_is_an_error_that_names_the_rule() -> None:
    with pytest.raises(SpaceError, match=r"cfg.yaml:3:5.*kl.*leaves nothing.*conv0"):
        build(Constraint("op", "conv0", activation={"algorithm": ("kl",)}, where="cfg.yaml:3:5"))


@pytest.mark.parametrize("rule", [Constraint("op", "conv9"), Constraint("optype", "Convolution")])
def test_a_pattern_that_matches_nothing_is_an_error_that_lists_what_there_is(rule: Constraint) -> None:
    with pytest.raises(SpaceError, match="matches nothing"):
        build(rule)


def test_patterns_match_whole_names_as_regular_expressions() -> None:
    space = build(Constraint("op", "conv[01]", activation={"dtype": ("fp32",)}))
    assert [space.default().by_name[f"conv{i}"].is_quantized for i in range(3)] == [False, False, True]


def test_nothing_left_to_quantize_is_an_error() -> None:
    with pytest.raises(SpaceError, match="nothing is left to quantize"):
        build(Constraint("model", "", activation={"dtype": ("fp32",)}))


def test_a_rule_on_one_op_of_a_group_splits_the_group() -> None:
    space = build(Constraint("op", "relu0", activation={"dtype": ("fp32",)}))
    assert space.groups["conv0"] == ("conv0",)
    assert any("split" in warning for warning in space.warnings)


def test_fallback_takes_the_whole_group() -> None:
    space = build()
    config = space.fallback(space.default(), ["conv1"])
    assert config.by_name["conv1"] == config.by_name["relu1"] == FP32


def test_an_fp32_config_has_no_sampling_size_so_it_is_one_config() -> None:
    small, large = (build_space(synthetic.capability(), (), "static", {}, (n,)) for n in (10, 20))
    assert small.fp32().hash == large.fp32().hash
    assert small.default().hash != large.default().hash


def test_a_recipe_that_turns_ops_to_fp32_is_the_config_with_these_ops_in_fp32() -> None:
    base = synthetic.capability()
    recipe = Recipe("first_conv_or_matmul_quantization", True, (True, False), fp32_ops=("conv0", "relu0"))
    space = build_space(Capability(base.ops, (recipe,)), (), "static", {}, (100,))
    with_recipe = space.effective(space.default().with_recipes({recipe.name: False}))
    assert with_recipe.hash == space.fallback(space.default(), ["conv0"]).hash


def test_an_unknown_recipe_is_an_error() -> None:
    with pytest.raises(SpaceError, match="smooth_quantt"):
        build_space(synthetic.capability(), (), "static", {"smooth_quantt": True}, (100,))


def test_a_config_survives_json() -> None:
    config = build().default()
    assert TuningConfig.from_json(config.to_json()) == config
    assert TuningConfig.from_json(config.to_json()).hash == config.hash


def test_a_config_survives_the_journal_s_compact_form() -> None:
    space = build()
    config = space.fallback(space.default(), ["conv1"]).with_recipes({"x": 1})
    assert TuningConfig.from_compact(config.to_compact(), [op.name for op in space.ops]) == config
