"""Recipes that decide which ops there are."""

from __future__ import annotations

import numpy as np
import pytest

from distune.errors import TrialError, UsageError
from tests.backends.onnx_models import attention_model, convolution_model, images, sentences, transformer_model
from tests.backends.recipes.common import UnderRecipes


def types(made: UnderRecipes) -> dict[str, str]:
    return {op.name: op.op_type for op in made.backend.facts().capability.ops}


def test_gemm_becomes_matmul_and_add_under_its_name() -> None:
    plain = UnderRecipes(convolution_model(), images())
    made = UnderRecipes(convolution_model(), images(), {"gemm_to_matmul": True})
    assert types(plain)["fc"] == "Gemm"
    assert (types(made)["fc"], types(made)["fc_Add"]) == ("MatMul", "Add")
    expected, actual = (each.backend.load(each.config()).predict(images()[0])[0] for each in (plain, made))
    np.testing.assert_allclose(actual, expected, atol=0.1 * np.abs(expected).max())
    assert made.graph().nodes["fc"].op_type == "MatMul"


def test_it_is_known_where_there_is_a_gemm_only() -> None:
    def names(made: UnderRecipes) -> set[str]:
        return {recipe.name for recipe in made.backend.facts().capability.recipes}

    assert "gemm_to_matmul" in names(UnderRecipes(convolution_model(), images()))
    assert "gemm_to_matmul" not in names(UnderRecipes(attention_model(), sentences()))


def test_a_saved_config_of_another_preparation_is_refused() -> None:
    made = UnderRecipes(convolution_model(), images(), {"gemm_to_matmul": True})
    config = made.config()
    exported = made.backend.export(config)
    with pytest.raises(TrialError, match="recipes of preparation"):
        UnderRecipes(convolution_model(), []).backend.apply(exported.deploy, config)
    again = UnderRecipes(convolution_model(), [], {"gemm_to_matmul": True}).backend.apply(exported.deploy, config)
    assert again.files == exported.files


def test_the_level_decides_what_is_fused() -> None:
    def op_types(level: str | None) -> set[str]:
        made = UnderRecipes(transformer_model(), [], {"graph_optimization_level": level})
        return {node.op_type for node in made.backend._model.proto.graph.node}

    assert "SkipLayerNormalization" not in op_types(None)
    assert "SkipLayerNormalization" in op_types("ENABLE_EXTENDED")
    assert op_types("DISABLE_ALL") >= op_types(None) - {"Gemm"}


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"])
def test_convolutions_are_quantized_at_every_level(level: str) -> None:
    made = UnderRecipes(convolution_model(), images(), {"graph_optimization_level": level})
    loaded = made.backend.load(made.config())
    assert loaded.ops_executed_int8 == 4


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(UsageError, match="graph_optimization_level"):
        UnderRecipes(convolution_model(), [], {"graph_optimization_level": "ENABLE_SOME"})


def test_pre_and_post_processing_are_ops_outside_of_the_layers() -> None:
    capability = UnderRecipes(attention_model(), sentences()).backend.facts().capability
    recipes = {recipe.name: recipe for recipe in capability.recipes}
    recipe = recipes["pre_post_process_quantization"]
    assert "embedding" in recipe.fp32_ops
    assert not {"query", "output", "softmax", "context"} & set(recipe.fp32_ops)
    assert recipe.choices == (True, False)
