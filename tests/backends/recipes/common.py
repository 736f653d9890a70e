"""Loading a small model under recipes, calibrated as the engine does it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from distune.backends.onnxruntime.graph import GraphIndex
from distune.config.job import ModelSpec, TuningJob
from distune.space.op_config import OpConfig, TensorConfig, TuningConfig
from tests.backends.onnx_models import SAMPLES, Feeds, OnnxRuntimeBackend, default_config, model


class UnderRecipes:
    """A backend for a live model, with ``feeds`` as its calibration data.

    Args:
        recipes: Of the job: those that decide which ops there are.
    """

    def __init__(self, proto: onnx.ModelProto, feeds: Feeds, recipes: dict[str, Any] | None = None) -> None:
        spec = ModelSpec("onnxruntime", live=proto)
        self.backend = OnnxRuntimeBackend(TuningJob(spec, recipes=recipes or {}))
        self.feeds = feeds
        self.plain = replace(default_config(self.backend), recipes=tuple(sorted((recipes or {}).items())))

    def config(self, **recipes: Any) -> TuningConfig:
        """The default config with ``recipes``, calibrated for."""
        config = self.plain.with_recipes(recipes)
        for variant in ((), self.backend.variant(config)):
            self.backend.prepare_calibration(SAMPLES)
            self.backend.set_statistics(variant, SAMPLES, self.backend.calibrate(variant, enumerate(self.feeds)))
        return config

    def graph(self, **recipes: Any) -> GraphIndex:
        """The quantized graph."""
        return GraphIndex(self.backend.load(self.config(**recipes)).native)

    def error(self, config: TuningConfig) -> float:
        """Mean squared error of the model's first output over the calibration data."""
        loaded, fp32 = self.backend.load(config), self.backend.load(None)
        return float(np.mean([np.square(loaded.predict(f)[0] - fp32.predict(f)[0]).mean() for f in self.feeds]))


def with_weights(config: TuningConfig, granularity: str) -> TuningConfig:
    """``config`` with symmetric int8 weights of a granularity."""
    weight = TensorConfig("int8", "sym", granularity)
    return config.with_ops({n: OpConfig(o.mode, o.activation, weight) for n, o in config.ops if o.weight is not None})


def value(index: GraphIndex, name: str) -> np.ndarray:
    """A constant of a graph."""
    return numpy_helper.to_array(index.initializers[name])


def weight_of(index: GraphIndex, op: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers, scale and zero point of an op's weight."""
    dequantize = index.producer[index.nodes[op].input[1]]
    integers, scale, zero = (value(index, name) for name in dequantize.input[:3])
    return integers, scale, zero


OUTLIER = 60.0


def linear_model(norm: bool = True, relu: bool = False) -> onnx.ModelProto:
    """x [batch, 5, 16] with one channel 60 times as large as the others, two projections and a third behind them.

    Args:
        norm: LayerNormalization makes the outlier; else it is in ``x`` and nothing is before it.
        relu: The third projection follows the first one through a Relu; else through an Add that both read.
    """
    rng = np.random.default_rng(2)
    gamma = np.ones(16)
    gamma[3] = OUTLIER
    constants = {
        "gamma": gamma,
        "beta": rng.normal(size=16) / 10,
        "w1": rng.normal(size=(16, 12)) / 4,
        "b1": rng.normal(size=12) / 10,
        "w2": rng.normal(size=(16, 12)) / 4,
        "w3": rng.normal(size=(12, 8)) / 4,
        "outlier": gamma,
    }
    first = helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], "norm")
    nodes = [
        first if norm else helper.make_node("Mul", ["x", "outlier"], ["n"], "outlying"),
        helper.make_node("MatMul", ["n", "w1"], ["p1"], "one"),
        helper.make_node("Add", ["p1", "b1"], ["q1"], "one_bias"),
        helper.make_node("MatMul", ["n", "w2"], ["p2"], "two"),
        helper.make_node("Relu", ["q1"], ["r"], "relu")
        if relu
        else helper.make_node("Add", ["q1", "p2"], ["r"], "sum"),
        helper.make_node("MatMul", ["r", "w3"], ["y"], "three"),
    ]
    outputs = ["y", "p2"] if relu else ["y"]
    arrays = {name: np.asarray(array, np.float32) for name, array in constants.items()}
    return model(nodes, {"x": ["batch", 5, 16]}, outputs, arrays)


def rows(count: int = 4) -> Feeds:
    """Batches of 8 for ``linear_model``."""
    rng = np.random.default_rng(8)
    return [{"x": rng.normal(size=(8, 5, 16)).astype(np.float32)} for _ in range(count)]
