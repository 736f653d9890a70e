"""What is chosen for one op and for the whole model: ``TensorConfig``, ``OpConfig`` and ``TuningConfig``.

All three are immutable, hashable and made of plain values, so that they travel as messages, are written to the
journal as JSON and compare by content. ``TuningConfig.hash`` is the identity of a trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

Mode = Literal["static", "dynamic", "weight_only", "bf16", "fp16", "fp32"]

QUANTIZED_MODES: tuple[Mode, ...] = ("static", "dynamic", "weight_only")
"""Modes in which an op counts as quantized."""

CALIBRATED_ALGORITHMS = frozenset({"GPTQ", "AWQ"})
"""Weight-only algorithms that look at the activations."""

HISTOGRAM_ALGORITHMS = frozenset({"kl", "percentile"})
"""Algorithms that find the range of an activation from how often its values occur."""

PRECISION_MODES: tuple[Mode, ...] = ("bf16", "fp16", "fp32")
"""Floating-point modes, in the order in which fallback tries them."""


@dataclass(frozen=True, order=True)
class TensorConfig:
    """How one role of an op's tensors, its weight or its activations, is quantized.

    Attributes:
        dtype: ``int8``, ``uint8``, ``int16``, ``uint16``, ``int4``, ``uint4`` or, for weight-only, ``int``.
        scheme: ``sym`` (zero point at the middle of the range) or ``asym``.
        granularity: ``per_tensor`` or ``per_channel``; weight-only groups are given by ``group_size``.
        algorithm: How the range is found: ``minmax``, ``kl``, ``percentile``; weight-only: ``RTN``, ``GPTQ``, ...
        bits: Bits a value of a weight-only weight takes; 0 means the width of ``dtype``.
        group_size: Input channels that share a scale in weight-only mode; -1 is the whole row, 0 not grouped.
    """

    dtype: str
    scheme: str = "sym"
    granularity: str = "per_tensor"
    algorithm: str = "minmax"
    bits: int = 0
    group_size: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the fields that weight-only mode alone uses where they are unset."""
        out: dict[str, Any] = {
            "dtype": self.dtype,
            "scheme": self.scheme,
            "granularity": self.granularity,
            "algorithm": self.algorithm,
        }
        if self.bits:
            out["bits"] = self.bits
        if self.group_size:
            out["group_size"] = self.group_size
        return out


@dataclass(frozen=True, order=True)
class OpConfig:
    """One choice for one op.

    Attributes:
        mode: How the op runs.
        activation: Its input activations, ``None`` where the mode leaves them in floating point.
        weight: Its weight, ``None`` where the op has none or the mode leaves it in floating point.
    """

    mode: Mode
    activation: TensorConfig | None = None
    weight: TensorConfig | None = None

    @property
    def is_quantized(self) -> bool:
        """True for static, dynamic and weight-only."""
        return self.mode in QUANTIZED_MODES

    @property
    def needs_calibration(self) -> bool:
        """True where calibration data decide about the numbers."""
        if self.mode == "weight_only":
            return self.weight is not None and self.weight.algorithm in CALIBRATED_ALGORITHMS
        return self.mode == "static"

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is ``None`` is left out."""
        out: dict[str, Any] = {"mode": self.mode}
        if self.activation is not None:
            out["activation"] = self.activation.to_json()
        if self.weight is not None:
            out["weight"] = self.weight.to_json()
        return out

    @cached_property
    def canonical(self) -> str:
        """``to_json`` as canonical JSON."""
        return canonical_json(self.to_json())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OpConfig:
        """Inverse of ``to_json``.

        Raises:
            KeyError, TypeError: ``data`` was not written by ``to_json``.
        """
        activation, weight = data.get("activation"), data.get("weight")
        return cls(
            data["mode"],
            TensorConfig(**activation) if activation is not None else None,
            TensorConfig(**weight) if weight is not None else None,
        )


FP32 = OpConfig("fp32")


@dataclass(frozen=True)
class TuningConfig:
    """One op config for every op, plus recipes, calibration sampling size and the user's own parameters.

    Attributes:
        ops: ``(op name, op config)`` of every op of the tuning space, in graph order.
        recipes: ``(name, value)`` of every recipe that is not at its default, sorted by name.
        sampling_size: Calibration samples; 0 where no op of the config needs calibration.
        parameters: The user's own tuned parameters, sorted by name.
    """

    ops: tuple[tuple[str, OpConfig], ...]
    recipes: tuple[tuple[str, Any], ...] = ()
    sampling_size: int = 0
    parameters: tuple[tuple[str, Any], ...] = field(default=())

    @cached_property
    def by_name(self) -> dict[str, OpConfig]:
        """Op configs by op name."""
        return dict(self.ops)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the config's canonical JSON, 16 hex digits: equal configs have equal hashes on every machine."""
        # ``canonical_json(self.to_json())``, put together from what is known of each op config: a master hashes every
        # config of every trial.
        ops = ",".join([f"{_quoted(name)}:{config.canonical}" for name, config in sorted(self.ops, key=_name)])
        rest = self.to_json_but_ops()
        tail = f",{canonical_json(rest)[1:]}" if rest else "}"
        return hashlib.sha256(f'{{"ops":{{{ops}}}{tail}'.encode()).hexdigest()[:16]

    @property
    def quantized_ops(self) -> tuple[str, ...]:
        """Names of the ops that are quantized, in graph order."""
        return tuple(name for name, config in self.ops if config.is_quantized)

    @property
    def is_fp32(self) -> bool:
        """True where no op differs from the fp32 model."""
        return all(config.mode == "fp32" for _, config in self.ops)

    @property
    def needs_calibration(self) -> bool:
        """True where at least one op is quantized statically, or weight-only by an algorithm that looks at inputs."""
        return any(config.needs_calibration for _, config in self.ops)

    @cached_property
    def needs_histograms(self) -> bool:
        """True where the range of some activation is found from how often its values occur."""
        activations = (config.activation for _, config in self.ops if config.mode == "static")
        return any(each is not None and each.algorithm in HISTOGRAM_ALGORITHMS for each in activations)

    def with_ops(self, changes: Mapping[str, OpConfig]) -> TuningConfig:
        """The same config with the op configs of ``changes`` put in.

        Raises:
            KeyError: ``changes`` names an op that the config does not have.
        """
        unknown = changes.keys() - self.by_name.keys()
        if unknown:
            raise KeyError(f"not an op of this tuning config: {', '.join(sorted(unknown))}")
        return replace(self, ops=tuple((name, changes.get(name, config)) for name, config in self.ops))

    def with_recipes(self, changes: Mapping[str, Any]) -> TuningConfig:
        """The same config with the recipes of ``changes`` set."""
        return replace(self, recipes=tuple(sorted({**dict(self.recipes), **changes}.items())))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in ``tuning_config.yaml`` and the journal."""
        return {"ops": {name: config.to_json() for name, config in self.ops}, **self.to_json_but_ops()}

    def to_json_but_ops(self) -> dict[str, Any]:
        """The part of ``to_json`` that is about the whole model."""
        out: dict[str, Any] = {}
        if self.recipes:
            out["recipes"] = dict(self.recipes)
        if self.sampling_size:
            out["sampling_size"] = self.sampling_size
        if self.parameters:
            out["parameters"] = dict(self.parameters)
        return out

    def to_compact(self) -> dict[str, Any]:
        """Plain values in little space, for the journal: each distinct op config once, and which one each op has."""
        options = list(dict.fromkeys(config for _, config in self.ops))
        index = {option: number for number, option in enumerate(options)}
        out = self.to_json()
        out["options"] = [option.to_json() for option in options]
        out["ops"] = [index[config] for _, config in self.ops]
        return out

    @classmethod
    def from_compact(cls, data: Mapping[str, Any], names: Sequence[str]) -> TuningConfig:
        """Inverse of ``to_compact``.

        Args:
            names: Op names of the tuning space, in graph order.

        Raises:
            KeyError, TypeError, IndexError, ValueError: ``data`` was not written by ``to_compact`` for these ops.
        """
        options = data["options"]
        ops = {name: options[number] for name, number in zip(names, data["ops"], strict=True)}
        return cls.from_json({**data, "ops": ops})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TuningConfig:
        """Inverse of ``to_json``.

        Raises:
            KeyError, TypeError: ``data`` was not written by ``to_json``.
        """
        return cls(
            tuple((name, OpConfig.from_json(config)) for name, config in data["ops"].items()),
            tuple(sorted(data.get("recipes", {}).items())),
            int(data.get("sampling_size", 0)),
            tuple(sorted(data.get("parameters", {}).items())),
        )


def canonical_json(value: Any) -> str:
    """JSON in which equal values have equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=4096)
def _quoted(name: str) -> str:
    return json.dumps(name)


def _name(op: tuple[str, OpConfig]) -> str:
    return op[0]
