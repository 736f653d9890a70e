"""Candidates of the op-type-wise stage: one option per op type, the combinations most worth trying first.

The full product over op types explodes (six options for each of three types are 216 trials), and most of it differs
from its neighbours in ways that hardly matter. So the order is by value: first every type changes the same single
field at once (another calibration algorithm, another scheme, another granularity, another dtype), then one type
alone, then the rest of the product. Whoever draws from it stops when the budget says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, product

from distune.space.op_config import Mode, OpConfig, TensorConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Candidate

_FIELDS = ("algorithm", "scheme", "granularity", "dtype", "bits", "group_size")


def op_type_wise(space: TuningSpace, base: TuningConfig, mode: Mode | None = None) -> Iterator[Candidate]:
    """Distinct configs in which all groups of one op type share an option, ``base`` itself left out.

    Args:
        base: Recipes and sampling size are taken from here, and the configs of groups that are not quantized.
        mode: Only options of this mode; ``None`` means each type's preferred quantized mode.
    """
    by_type = _options(space, base, mode)
    seen = {base.hash}
    for choice, label in _choices(by_type):
        config = _apply(space, base, choice)
        if config.hash not in seen:
            seen.add(config.hash)
            yield Candidate(config, label)


def op_type_wise_total(space: TuningSpace, base: TuningConfig, limit: int, mode: Mode | None = None) -> int:
    """Number of candidates of ``op_type_wise``, counted up to ``limit`` + 1 only."""
    return sum(1 for _ in islice(op_type_wise(space, base, mode), limit + 1))


def _options(space: TuningSpace, base: TuningConfig, mode: Mode | None) -> dict[str, tuple[OpConfig, ...]]:
    """Options that some quantized group of a type has, by type, in the order of the type's first group."""
    by_type: dict[str, dict[OpConfig, None]] = {}
    seen: list[tuple[str, tuple[OpConfig, ...]]] = []  # few, as in _apply
    for group, names in space.groups.items():
        kind = (space.group_type(group), space.op[names[0]].options)
        if not base.by_name[names[0]].is_quantized or kind in seen:
            continue
        seen.append(kind)
        options = space.group_options(group)
        if not options:
            continue
        wanted = mode or options[0].mode
        known = by_type.setdefault(space.group_type(group), {})
        known.update(dict.fromkeys(option for option in options if option.mode == wanted))
    return {kind: tuple(options) for kind, options in by_type.items() if options}


def _choices(by_type: Mapping[str, Sequence[OpConfig]]) -> Iterator[tuple[dict[str, OpConfig], str]]:
    default = {kind: options[0] for kind, options in by_type.items()}
    yield default, "default"
    changes = _single_changes(by_type)
    for role, field, value in changes:
        everywhere = {kind: _changed(options, role, field, value) for kind, options in by_type.items()}
        yield everywhere, f"{role} {field} {value}"
    for kind, options in by_type.items():
        for role, field, value in changes:
            changed = _changed(options, role, field, value)
            if changed != options[0]:
                yield {**default, kind: changed}, f"{kind}: {role} {field} {value}"
    kinds = list(by_type)
    for combination in product(*by_type.values()):
        choice = dict(zip(kinds, combination, strict=True))
        yield (
            choice,
            "; ".join(f"{kind}: {_words(option)}" for kind, option in choice.items() if option != default[kind]),
        )


def _single_changes(by_type: Mapping[str, Sequence[OpConfig]]) -> list[tuple[str, str, object]]:
    """Every (role, field, value) in which some option differs from its type's default, the likeliest help first."""
    found: dict[tuple[str, str, object], None] = {}
    for field in _FIELDS:
        for role in ("activation", "weight"):
            for options in by_type.values():
                default = _tensor(options[0], role)
                for option in options[1:]:
                    tensor = _tensor(option, role)
                    if default is not None and tensor is not None and getattr(tensor, field) != getattr(default, field):
                        found[role, field, getattr(tensor, field)] = None
    return list(found)


def _changed(options: Sequence[OpConfig], role: str, field: str, value: object) -> OpConfig:
    """The first option that has ``value`` in that field and is otherwise like the default, else the default."""
    default = options[0]
    fitting = [o for o in options if (tensor := _tensor(o, role)) is not None and getattr(tensor, field) == value]
    return min(fitting, key=lambda option: _distance(option, default), default=default)


def _distance(a: OpConfig, b: OpConfig) -> int:
    """Fields in which two options differ; a role that one of them lacks does not count."""
    return sum(
        getattr(left, name) != getattr(right, name)
        for role in ("activation", "weight")
        if (left := _tensor(a, role)) is not None and (right := _tensor(b, role)) is not None
        for name in _FIELDS
    )


def _apply(space: TuningSpace, base: TuningConfig, choice: Mapping[str, OpConfig]) -> TuningConfig:
    changes: dict[str, OpConfig] = {}
    # Ops of one kind have the very same options: to compare those is quick, to hash them is not.
    kinds: list[tuple[str, tuple[OpConfig, ...]]] = []
    found: list[OpConfig | None] = []
    for group, names in space.groups.items():
        wanted = choice.get(space.group_type(group))
        if wanted is None or not base.by_name[names[0]].is_quantized:
            continue
        # Groups of one type need not have the same options (a MatMul of two activations has no weight).
        kind = (space.group_type(group), space.op[names[0]].options)
        if kind not in kinds:
            usable = [option for option in space.group_options(group) if option.mode == wanted.mode]
            kinds.append(kind)
            found.append(min(usable, key=partial(_distance, wanted), default=None))
        nearest = found[kinds.index(kind)]
        if nearest is not None:
            changes.update(space.group_changes(group, nearest))
    return space.effective(base.with_ops(changes))


def _tensor(option: OpConfig, role: str) -> TensorConfig | None:
    return option.activation if role == "activation" else option.weight


def _words(option: OpConfig) -> str:
    parts = [f"{t.dtype} {t.scheme} {t.granularity} {t.algorithm}" for t in (option.activation, option.weight) if t]
    return f"{option.mode} {' / '.join(parts)}"
