"""A synthetic model: some convolutions and one MatMul, each costing a known accuracy when quantized.

Used where the room under test needs a tuning space and an accuracy, and no framework.
"""

from __future__ import annotations

from collections.abc import Mapping

from distune.space.capability import Capability, ModeOptions, OpInfo, TensorOptions
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace, build_space

ACTIVATION = TensorOptions(("uint8", "int8"), ("asym", "sym"), algorithms=("minmax", "percentile"))
WEIGHT = TensorOptions(("int8",), granularities=("per_channel", "per_tensor"))
CONV: tuple[OpConfig, ...] = (*ModeOptions("static", ACTIVATION, WEIGHT).expand(), FP32)
RELU: tuple[OpConfig, ...] = (*ModeOptions("static", ACTIVATION).expand(), FP32)


def capability(convs: int = 4, matmuls: int = 1) -> Capability:
    """``convs`` Conv+Relu groups and ``matmuls`` MatMuls."""
    ops: list[OpInfo] = []
    for index in range(convs):
        ops.append(OpInfo(f"conv{index}", "Conv", CONV, f"conv{index}", has_weight=True))
        ops.append(OpInfo(f"relu{index}", "Relu", RELU, f"conv{index}"))
    ops.extend(OpInfo(f"matmul{index}", "MatMul", CONV, f"matmul{index}", has_weight=True) for index in range(matmuls))
    return Capability(tuple(ops))


def space(convs: int = 4, matmuls: int = 1, sampling_sizes: tuple[int, ...] = (100,)) -> TuningSpace:
    """The unconstrained static tuning space of ``capability``."""
    return build_space(capability(convs, matmuls), (), "static", {}, sampling_sizes)


def accuracy(config: TuningConfig, cost: Mapping[str, float], base: float = 1.0) -> float:
    """``base`` less what each quantized op costs."""
    return base - sum(cost.get(name, 0.0) for name in config.quantized_ops)
