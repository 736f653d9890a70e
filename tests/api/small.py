"""A small classifier and its data: three MatMuls with fixed weights, judged against its own fp32 answers."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (16, 32, 32, 4)


@cache
def model() -> onnx.ModelProto:
    """``input`` float32 [N, 16] -> ``logits`` [N, 4]; MatMuls ``fc0`` to ``fc2``."""
    rng = np.random.default_rng(7)
    nodes, weights, value = [], [], "input"
    for index, (rows, columns) in enumerate(itertools.pairwise(WIDTHS)):
        weights.append(numpy_helper.from_array((rng.normal(size=(rows, columns)) / 4).astype(np.float32), f"w{index}"))
        last = index == len(WIDTHS) - 2
        out = "logits" if last else f"h{index}"
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [out], name=f"fc{index}"))
        value = out
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{index}"], name=f"relu{index}"))
            value = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", WIDTHS[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", WIDTHS[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(proto: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a model that is used like an ``onnx.ModelProto`` gives in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    outputs: NDArray[np.float32] = session.run(None, {"input": images})[0]
    return outputs


@cache
def samples(count: int = 200, seed: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs [count, 16] and the fp32 model's classes for them [count]."""
    images = np.random.default_rng(seed).normal(size=(count, WIDTHS[0])).astype(np.float32)
    return images, run(model(), images).argmax(1)


class Batches:
    """A dataloader as INC 2.x expects it: ``(input, label)`` pairs and a ``batch_size``."""

    def __init__(self, batch_size: int = 20, count: int = 200, seed: int = 1) -> None:
        self.batch_size = batch_size
        self._images, self._labels = samples(count, seed)

    def __iter__(self) -> Any:
        for start in range(0, len(self._images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self._images[rows], self._labels[rows]


def score(proto: Any) -> float:
    """An ``eval_func``: the share of answers that are fp32's."""
    images, labels = samples()
    return float((run(proto, images).argmax(1) == labels).mean())
