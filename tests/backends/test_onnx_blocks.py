"""Transformer blocks are found from the graph: attention and feed-forward network together, layer by layer."""

from __future__ import annotations

import pytest

from distune.backends.onnxruntime.capability import inspect
from distune.backends.onnxruntime.preprocess import prepare
from tests.backends.onnx_models import attention_model, convolution_model, transformer_model


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_each_layer_is_a_block(layers: int, pre_norm: bool) -> None:
    blocks = inspect(prepare(transformer_model(layers, pre_norm))).blocks
    assert len(blocks) == layers
    for layer, block in enumerate(blocks):
        parts = ("q", "k", "v", "scores", "context", "o", "up", "down")
        assert set(block) == {f"l{layer}_{part}" for part in parts}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_fused_attention_is_the_heart_of_a_block_too(pre_norm: bool) -> None:
    blocks = inspect(prepare(transformer_model(3, pre_norm, fused=True))).blocks
    assert [set(block) for block in blocks] == [
        {f"l{layer}_{part}" for part in ("attention", "o", "up", "down")} for layer in range(3)
    ]


def test_what_stands_before_and_after_the_layers_belongs_to_no_block() -> None:
    groups = {group for block in inspect(prepare(transformer_model())).blocks for group in block}
    assert not groups & {"embed", "classifier"}


def test_a_single_attention_is_a_block_and_a_convolutional_network_has_none() -> None:
    (block,) = inspect(prepare(attention_model())).blocks
    assert set(block) == {"query", "key", "value", "scores", "context", "output"}
    assert inspect(prepare(convolution_model())).blocks == ()
