"""What the user's recipes mean: fixed, tuned over, or an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distune.errors import SpaceError
from distune.space.capability import Capability, Recipe
from distune.space.recipes import SmoothQuantArgs
from distune.space.tuning_space import TuningSpace, build_space
from tests import synthetic

RECIPES = (
    Recipe("smooth_quant", False, (False,), variant=True, modes=("static", "dynamic"), leads=True),
    Recipe("smooth_quant_args", "", ("",), variant=True),
    Recipe("adaround", False, (False,), variant=True, modes=("static",)),
    Recipe("weight_correction", False, (False,), modes=("static",)),
    Recipe("optypes_to_exclude_output_quant", "", ("",)),
)


def capability() -> Capability:
    return replace(synthetic.capability(), recipes=RECIPES)


def space(**recipes: Any) -> TuningSpace:
    return build_space(capability(), (), "static", recipes, (100,))


@pytest.mark.parametrize(
    ("recipes", "fixed"),
    [
        ({"smooth_quant": True}, (("smooth_quant", 0.5),)),
        ({"smooth_quant": True, "smooth_quant_args": {"alpha": 0}}, (("smooth_quant", 0.0),)),
        ({"smooth_quant": True, "smooth_quant_args": {"alpha": [0.7]}}, (("smooth_quant", 0.7),)),
        ({"smooth_quant": True, "smooth_quant_args": {"alpha": "auto"}}, (("smooth_quant", "auto"),)),
        ({"smooth_quant": False, "smooth_quant_args": {"alpha": 0.3}}, ()),
        (
            {"smooth_quant": True, "smooth_quant_args": {"folding": False}},
            (("smooth_quant", 0.5), ("smooth_quant_args", '{"folding": false}')),
        ),
        ({"adaround": True}, (("adaround", True),)),
        ({"adaround": [True]}, (("adaround", True),)),
        (
            {"optypes_to_exclude_output_quant": ["Conv", "MatMul"]},
            (("optypes_to_exclude_output_quant", "Conv,MatMul"),),
        ),
        ({"optypes_to_exclude_output_quant": []}, ()),
        ({"layer_wise_quant": False, "graph_optimization_level": None}, ()),
        ({"scale_propagation_concat": True, "gemm_to_matmul": True}, ()),
    ],
)
def test_a_value_is_fixed(recipes: dict[str, Any], fixed: tuple[tuple[str, Any], ...]) -> None:
    built = space(**recipes)
    assert built.fixed_recipes == fixed
    assert built.recipes == ()
    assert built.default().recipes == fixed


def test_a_list_of_alphas_is_settled_before_everything_else() -> None:
    built = space(smooth_quant=True, smooth_quant_args={"alpha": [0.3, 0.5, "auto"]})
    (recipe,) = built.leading
    assert (recipe.name, recipe.choices) == ("smooth_quant", (0.3, 0.5, "auto"))
    assert built.settled("smooth_quant", 0.3).default().recipes == (("smooth_quant", 0.3),)
    assert built.settled("smooth_quant", 0.3).leading == ()


def test_a_list_of_values_is_tuned_over_with_the_default_first() -> None:
    (recipe,) = space(adaround=[True, False]).recipes
    assert recipe.choices == (False, True)
    assert space(adaround=[True, False]).leading == ()
    assert [r.choices for r in space(smooth_quant=[True, False]).leading] == [(False, 0.5)]


def test_nothing_of_this_is_tuned_unless_the_user_says_so() -> None:
    assert space().recipes == ()


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"cross_layer_equalization": True}, "recipe 'cross_layer_equalization' cannot be used"),
        ({"smooth_quant": True, "smooth_quant_args": {"alpha": 1.5}}, "smooth_quant_args.alpha: expected numbers"),
        ({"smooth_quant": True, "smooth_quant_args": {"alpha": True}}, "smooth_quant_args.alpha: expected numbers"),
        ({"smooth_quant": True, "smooth_quant_args": {"foldin": True}}, "did you mean 'folding'"),
        ({"smooth_quant": True, "smooth_quant_args": {"folding": 3}}, "folding: expected a bool"),
        ({"smooth_quant": True, "smooth_quant_args": {"auto_alpha_args": {"alpha_stp": 1}}}, "'alpha_step'"),
        (
            {"smooth_quant": True, "smooth_quant_args": {"auto_alpha_args": {"do_blockwise": 1}}},
            "do_blockwise: expected a bool",
        ),
        ({"smooth_quant": True, "smooth_quant_args": {"auto_alpha_args": {"alpha_step": 0}}}, "alpha_step above 0"),
        (
            {"smooth_quant": True, "smooth_quant_args": {"auto_alpha_args": {"shared_criterion": "x"}}},
            "mean, min or max",
        ),
    ],
)
def test_what_cannot_be_is_an_error(recipes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space(**recipes)


def test_the_arguments_survive_their_text() -> None:
    args = SmoothQuantArgs(folding=False, alpha_min=0.2, alpha_max=0.6, alpha_step=0.2)
    assert SmoothQuantArgs.from_text(args.to_text()) == args
    assert args.alphas == (0.2, 0.4, 0.6)
    assert SmoothQuantArgs().to_text() == ""


def test_recipes_that_change_what_is_calibrated_are_the_variant() -> None:
    built = space(adaround=True, weight_correction=True)
    assert built.variant(built.default()) == (("adaround", True),)
    assert built.variant(built.fp32()) == ()
