"""What a backend can do with a model: the raw material of the tuning space."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from distune.space.op_config import Mode, OpConfig, TensorConfig


@dataclass(frozen=True)
class TensorOptions:
    """The choices for one role of an op type's tensors; the first of each tuple is the default.

    ``expand`` gives their product in priority order: the last-named field varies fastest.
    """

    dtypes: tuple[str, ...]
    schemes: tuple[str, ...] = ("sym",)
    granularities: tuple[str, ...] = ("per_tensor",)
    algorithms: tuple[str, ...] = ("minmax",)
    bits: tuple[int, ...] = (0,)
    group_sizes: tuple[int, ...] = (0,)

    def expand(self) -> Iterator[TensorConfig]:
        """Every combination, the default one first."""
        for values in product(
            self.dtypes, self.schemes, self.granularities, self.algorithms, self.bits, self.group_sizes
        ):
            yield TensorConfig(*values)


@dataclass(frozen=True)
class ModeOptions:
    """The choices of one mode for one op type; ``None`` where the mode does not touch that role."""

    mode: Mode
    activation: TensorOptions | None = None
    weight: TensorOptions | None = None

    def expand(self) -> Iterator[OpConfig]:
        """Every op config of the mode, the default one first."""
        activations: Sequence[TensorConfig | None] = list(self.activation.expand()) if self.activation else [None]
        weights: Sequence[TensorConfig | None] = list(self.weight.expand()) if self.weight else [None]
        for activation, weight in product(activations, weights):
            yield OpConfig(self.mode, activation, weight)


@dataclass(frozen=True)
class OpInfo:
    """One quantizable op of the model and what the backend can do for it.

    Attributes:
        name: The op's name in the user's model.
        op_type: The framework's op type, e.g. ``Conv``.
        options: Every op config that the backend runs for this op, best-liked first, floating point last. Ops of
            one type share the tuple.
        group: Name of the group (that of its first op in graph order) whose ops fall back together.
        has_weight: The op owns a weight tensor; ``ops_total`` of a result counts these.
    """

    name: str
    op_type: str
    options: tuple[OpConfig, ...]
    group: str
    has_weight: bool = False


@dataclass(frozen=True)
class Recipe:
    """A rewrite of the whole model that can be tuned over.

    Attributes:
        name: The name in the configuration, e.g. ``gemm_to_matmul``.
        default: Value when nobody says otherwise.
        choices: Every value worth trying, the default first; one entry means that it is not tuned.
        fp32_ops: Ops that any value but the default turns to fp32. Where it is not empty this is all that the recipe
            does, so that the effective config can be computed without the backend.
        variant: It changes what is calibrated: its values are part of the key under which statistics are kept.
        modes: Quantized modes in which it does something; empty means all.
        leads: Where it is tuned over, its choices are judged as a stage of their own before everything else.
        speeds_up: Its last choice is faster than the default, at some cost in accuracy.
    """

    name: str
    default: Any
    choices: tuple[Any, ...]
    fp32_ops: tuple[str, ...] = ()
    variant: bool = False
    modes: tuple[Mode, ...] = ()
    leads: bool = False
    speeds_up: bool = False

    def is_default(self, value: Any) -> bool:
        """Whether ``value`` is the default: of its type too, since an alpha of 0.0 is not ``False``."""
        return type(value) is type(self.default) and bool(value == self.default)


@dataclass(frozen=True)
class Capability:
    """All that a backend says of a model.

    Attributes:
        ops: The quantizable ops in graph order.
        recipes: The recipes that the backend knows for this model and approach.
        excluded: ``(op name, op type, reason)`` of ops that are never quantized and why.
        blocks: Names of the groups of each detected repeated block (transformer layer), in graph order.
    """

    ops: tuple[OpInfo, ...]
    recipes: tuple[Recipe, ...] = ()
    excluded: tuple[tuple[str, str, str], ...] = ()
    blocks: tuple[tuple[str, ...], ...] = field(default=())

    def without(self, precisions: Collection[str]) -> Capability:
        """The same ops without floating-point ``precisions`` (``bf16``, ``fp16``)."""
        if not precisions:
            return self
        kept = {options: tuple(o for o in options if o.mode not in precisions) for options in self._distinct_options}
        return replace(self, ops=tuple(replace(op, options=kept[op.options]) for op in self.ops))

    @property
    def _distinct_options(self) -> set[tuple[OpConfig, ...]]:
        return {op.options for op in self.ops}
