"""The tuning space as independent categorical parameters, for strategies that sample or enumerate it.

There is one parameter a group of ops with more than one option, one for the calibration sampling size, and those of
the user's own (``tuning.parameters``). A point is a tuple of indices, one a parameter. Nothing here enumerates the
space: a model of 60 ops has 10⁴⁰ points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from distune.config.parameters import ParameterSpec, Value
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Candidate

Point = tuple[int, ...]
"""Index of the choice of every parameter."""


@dataclass(frozen=True)
class Parameter:
    """One categorical parameter.

    Attributes:
        name: ``sampling_size``, ``group:`` and the name of a group of ops, or ``parameter:`` and that of a parameter of
            the user's own.
        choices: What its indices stand for.
        default: Index of the default choice.
        spec: The user's parameter, where it is one.
    """

    name: str
    choices: tuple[OpConfig | Value, ...]
    default: int = 0
    spec: ParameterSpec | None = None

    @property
    def ordered(self) -> bool:
        """True where neighbouring indices stand for neighbouring values."""
        return self.spec is not None and self.spec.kind != "categorical"


@dataclass(frozen=True)
class SearchSpace:
    """See the module's description.

    Attributes:
        space: The tuning space.
        fallback: Whether floating point is among the options of a group.
    """

    space: TuningSpace
    fallback: bool = False

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that have a choice: the sampling size, the groups in graph order, the user's own."""
        found = [Parameter(f"group:{group}", self._options(group)) for group in self._groups]
        calibrated = any(o.mode == "static" for op in self.space.ops for o in op.options)
        if calibrated and len(self.space.sampling_sizes) > 1:
            found.insert(0, Parameter("sampling_size", self.space.sampling_sizes))
        found += [
            Parameter(f"parameter:{spec.name}", spec.choices, spec.nearest(spec.first), spec)
            for spec in self.space.parameters
        ]
        return tuple(found)

    @cached_property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(parameter.choices) for parameter in self.parameters)

    def points(self) -> Iterator[Point]:
        """Every point in order, the default one first, the last parameter varying fastest. Lazy."""
        return product(*(range(len(parameter.choices)) for parameter in self.parameters))

    def candidate(self, point: Sequence[int]) -> Candidate:
        """The tuning config of a point, with a label that says how far it is from the default."""
        changes: dict[str, OpConfig] = {}
        values: dict[str, Value] = {}
        sampling_size = self.space.sampling_sizes[0]
        changed = 0
        for parameter, index in zip(self.parameters, point, strict=True):
            choice = parameter.choices[index]
            if isinstance(choice, OpConfig):
                changes.update(self._changes(parameter.name.removeprefix("group:"), choice))
                changed += index > 0
            elif parameter.spec is not None:
                values[parameter.spec.name] = choice
            else:
                sampling_size = int(choice)
        own = tuple(sorted(values.items()))
        config = replace(self._default.with_ops(changes), sampling_size=sampling_size, parameters=own)
        label = f"{changed} of {len(self.space.groups)} groups changed" if changed else "default"
        if sampling_size != self.space.sampling_sizes[0]:
            label += f", {sampling_size} samples"
        label += "".join(
            f", {name}={value:.4g}" if isinstance(value, float) else f", {name}={value}" for name, value in own
        )
        return Candidate(self.space.effective(config), label)

    @cached_property
    def _default(self) -> TuningConfig:
        return self.space.default()

    @cached_property
    def _groups(self) -> tuple[str, ...]:
        """Groups with a choice. One that a recipe keeps in fp32 has none: its options would all be one config."""
        by_name = self._default.by_name
        return tuple(
            group
            for group, names in self.space.groups.items()
            if len(self._options(group)) > 1 and any(by_name[name].is_quantized for name in names)
        )

    def _options(self, group: str) -> tuple[OpConfig, ...]:
        quantized = self.space.group_options(group)
        if not self.fallback or not quantized:
            return quantized
        first = self.space.op[self.space.groups[group][0]]
        return (*quantized, *(option for option in first.options if not option.is_quantized))

    def _changes(self, group: str, option: OpConfig) -> dict[str, OpConfig]:
        if option.is_quantized:
            return self.space.group_changes(group, option)
        # As in fallback: an op of the group that lacks this precision takes fp32.
        return {name: option if option in self.space.op[name].options else FP32 for name in self.space.groups[group]}


class Unseen:
    """Gives each tuning config of a search space once, whoever proposes the points.

    Points that lead to the same effective config are one; the fp32 model is none.
    """

    def __init__(self, search: SearchSpace) -> None:
        self._search = search
        self._points: set[Point] = set()
        self._hashes: set[str] = set()
        self._rest = search.points()

    @property
    def exhausted(self) -> bool:
        """Every point was given or was found to lead to a config that was given."""
        return len(self._points) >= self._search.size

    def take(self, point: Point) -> Candidate | None:
        """The candidate of ``point``; ``None`` where its config was given before."""
        if point in self._points:
            return None
        self._points.add(point)
        candidate = self._search.candidate(point)
        if candidate.config.hash in self._hashes or candidate.config.is_fp32:
            return None
        self._hashes.add(candidate.config.hash)
        return candidate

    def following(self) -> tuple[Point, Candidate] | None:
        """The next in order that was not given; ``None`` when none is left."""
        for point in self._rest:
            candidate = self.take(point)
            if candidate is not None:
                return point, candidate
        return None
