"""A backend small enough to see through: ``y = x @ W``, one op, real int8 arithmetic in NumPy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distune.backends.base import (
    Backend,
    ExportedModel,
    Feed,
    InputInfo,
    ModelFacts,
    Outputs,
    RunnableModel,
    register_backend,
)
from distune.config.job import TuningJob
from distune.errors import ModelError, TrialError
from distune.space.capability import Capability, OpInfo
from distune.space.op_config import FP32, OpConfig, TensorConfig, TuningConfig

FRAMEWORK = "linear"
INT8 = OpConfig("static", TensorConfig("uint8", "asym"), TensorConfig("int8"))
BROKEN = OpConfig("static", TensorConfig("int16"), TensorConfig("int8"))
"""A config that cannot be loaded."""

HUGE = OpConfig("static", TensorConfig("uint16"), TensorConfig("int8"))
"""A config that runs out of memory while it is loaded."""

register_backend(FRAMEWORK, f"{__name__}:LinearBackend")


def config(op: OpConfig = INT8, sampling_size: int = 8) -> TuningConfig:
    """The config that gives the one op ``op``."""
    return TuningConfig((("linear", op),), sampling_size=0 if op == FP32 else sampling_size)


class LinearModel(RunnableModel):
    def __init__(self, weight: np.ndarray, scales: tuple[float, float, float] | None) -> None:
        self._weight = weight
        self._scales = scales

    def predict(self, feed: Feed) -> Outputs:
        x = feed["x"]
        if self._scales is None:
            return [x @ self._weight]
        low, step, weight_step = self._scales
        quantized = np.clip(np.round((x - low) / step), 0, 255) * step + low
        return [(quantized @ np.round(self._weight / weight_step) * weight_step).astype(np.float32)]

    @property
    def native(self) -> Any:
        return self._weight

    @property
    def size_bytes(self) -> int:
        return int(self._weight.size) * (4 if self._scales is None else 1)

    @property
    def ops_executed_int8(self) -> int:
        return 0 if self._scales is None else 1


class LinearBackend(Backend):
    """Reads its weight from ``model.live``."""

    standalone = f"{__name__}:run"

    def __init__(self, job: TuningJob) -> None:
        if job.model.live is None:
            raise ModelError("the linear model needs a weight")
        self.weight = np.asarray(job.model.live, np.float32)
        self.ranges: dict[int, tuple[float, float]] = {}
        self.loads: list[tuple[str, int]] = []
        self.shares: list[tuple[str, int]] = []
        self.share_limits: list[int] = []

    def facts(self) -> ModelFacts:
        ops = (OpInfo("linear", "MatMul", (INT8, FP32), "linear", has_weight=True),)
        inputs = (InputInfo("x", "float32", ("batch", self.weight.shape[0])),)
        return ModelFacts(Capability(ops), inputs, ("y",), self.weight.nbytes, {}, {"numpy": np.__version__})

    def share(self, base: TuningConfig | None, samples: int = 0, memory_limit: int = 0) -> None:
        self.shares.append(("" if base is None else base.hash, samples))
        self.share_limits.append(memory_limit)

    def load(self, config: TuningConfig | None, threads: int = 1) -> LinearModel:
        self.loads.append(("fp32" if config is None else config.hash, threads))
        if config is None or config.by_name["linear"] == FP32:
            return LinearModel(self.weight, None)
        if config.by_name["linear"] == BROKEN:
            raise ValueError("no kernel for int16")
        if config.by_name["linear"] == HUGE:
            raise MemoryError
        if config.sampling_size not in self.ranges:
            raise TrialError("not calibrated")
        low, high = self.ranges[config.sampling_size]
        return LinearModel(self.weight, (low, (high - low) / 255, float(np.abs(self.weight).max()) / 127))

    def calibrate(self, variant: tuple[tuple[str, Any], ...], batches: Iterable[tuple[int, Feed]]) -> bytes:
        seen = {index: (float(feed["x"].min()), float(feed["x"].max())) for index, feed in batches}
        return json.dumps(seen).encode()

    def set_statistics(self, variant: tuple[tuple[str, Any], ...], sampling_size: int, blob: bytes) -> None:
        ranges = json.loads(blob).values()
        self.ranges[sampling_size] = (min(low for low, _ in ranges), max(high for _, high in ranges))

    def export(self, config: TuningConfig) -> ExportedModel:
        return ExportedModel({"weight.bin": self.weight.tobytes()}, {"ranges": list(self.ranges.values())})

    def apply(self, deploy: Mapping[str, Any], config: TuningConfig) -> ExportedModel:
        return self.export(config)

    def probe(
        self, kind: str, config: TuningConfig, ops: Sequence[str], feeds: Sequence[Feed], args: Mapping[str, Any]
    ) -> Mapping[str, float]:
        return {"linear": float(sum(len(feed["x"]) for feed in feeds))}


def run(path: str, feed: Feed, threads: int) -> None:
    """As ``Backend.standalone`` wants it: reads the model and, so that a test can see it, 64 MiB more."""
    weight = np.frombuffer(Path(path).read_bytes(), np.float32).reshape(feed["x"].shape[1], -1)
    ballast = np.ones(64 << 20, np.uint8)
    assert (feed["x"] @ weight).shape[0] == len(feed["x"])
    assert ballast[-1] == 1
