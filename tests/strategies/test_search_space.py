"""The space as parameters: lazy, in order, and every config once."""

from __future__ import annotations

from itertools import islice

import pytest

from distune.space.capability import ModeOptions, OpInfo, Recipe, TensorOptions
from distune.space.op_config import FP32
from distune.space.tuning_space import TuningSpace
from distune.strategies.search_space import SearchSpace, Unseen
from tests.strategies.harness import PLAIN, STATIC, mixed_space


def everything(search: SearchSpace) -> list[str]:
    unseen = Unseen(search)
    found = []
    while (following := unseen.following()) is not None:
        found.append(following[1].config.hash)
    assert unseen.exhausted
    return found


def test_the_default_is_first_and_the_last_group_varies_fastest() -> None:
    space = mixed_space(3)
    search = SearchSpace(space)
    first, second = (search.candidate(point).config for point in islice(search.points(), 2))
    assert first == space.default()
    assert [name for name, option in second.ops if option != first.by_name[name]] == ["op2"]


def test_a_space_of_sixty_ops_is_counted_and_drawn_from_without_being_gone_through() -> None:
    search = SearchSpace(mixed_space(60))
    assert search.size == 4**60
    assert len(list(islice(search.points(), 5))) == 5


@pytest.mark.parametrize(("fallback", "count"), [(False, 4**3), (True, 5**3 - 1)])
def test_every_config_once_and_never_the_fp32_model(fallback: bool, count: int) -> None:
    found = everything(SearchSpace(mixed_space(3), fallback))
    assert len(found) == len(set(found)) == count


def test_sampling_sizes_are_a_parameter_where_something_is_calibrated() -> None:
    assert len(everything(SearchSpace(mixed_space(2, sampling_sizes=(10, 20))))) == 2 * 4**2
    dynamic = ModeOptions("dynamic", TensorOptions(("uint8", "int8")), TensorOptions(("int8",)))
    assert len(everything(SearchSpace(mixed_space(2, dynamic, sampling_sizes=(10, 20))))) == 2**2


def test_a_group_that_a_recipe_keeps_in_fp32_is_no_parameter() -> None:
    recipe = Recipe("first_conv_or_matmul_quantization", True, (True, False), fp32_ops=("op0",))
    space = mixed_space(2, known_recipes=(recipe,), fixed_recipes=((recipe.name, False),))
    assert [parameter.name for parameter in SearchSpace(space).parameters] == ["group:op1"]


def test_ops_of_one_group_fall_back_together() -> None:
    options = (*PLAIN.expand(), FP32)
    space = TuningSpace(
        (OpInfo("a", "Conv", options, "a"), OpInfo("b", "Relu", options, "a"), OpInfo("c", "Conv", options, "c"))
    )
    configs = {SearchSpace(space, True).candidate(point).config for point in SearchSpace(space, True).points()}
    assert all(config.by_name["a"].is_quantized == config.by_name["b"].is_quantized for config in configs)


def test_options_of_a_group_are_those_of_its_first_op() -> None:
    assert [len(parameter.choices) for parameter in SearchSpace(mixed_space(2, STATIC)).parameters] == [4, 4]
