"""What a trial changed and what came of it, in words: ``conv_7 back to fp32: +0.8 points``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Trial

_NAMED = 3
"""Ops that a sentence names; more are counted."""


class Changes:
    """Compares each trial with the judged one that it differs from least: the first of the run, or the best one before
    its stage."""

    def __init__(self) -> None:
        self._groups: Mapping[str, str] = {}
        self._higher_is_better = True
        self._in_points = True
        self._first: Trial | None = None
        self._base: Trial | None = None

    def use(self, space: TuningSpace) -> None:
        """Name ops by their groups."""
        self._groups = {op.name: op.group or op.name for op in space.ops}

    def baseline(self, accuracy: float, higher_is_better: bool) -> None:
        """The fp32 model's accuracy; where it is a share, changes are told in hundredths of one."""
        self._higher_is_better = higher_is_better
        self._in_points = higher_is_better and 0 <= accuracy <= 1

    def start_stage(self, best: Trial | None) -> None:
        """Trials are compared with ``best`` from now on."""
        self._base = best or self._base

    def sentence(self, trial: Trial) -> str:
        """What ``trial`` changed, and by how much that changed the accuracy; its label where nothing can be said."""
        known = [other for other in (self._base, self._first) if other is not None and other.config != trial.config]
        self._first = self._first or trial
        if not known:
            return trial.label
        nearest = min(known, key=lambda other: _differing(other.config, trial.config))
        what = self._what(nearest.config, trial.config)
        if not what:
            return trial.label
        gain = self._gain(nearest, trial)
        return f"{what}: {gain}" if gain else what

    def _what(self, old: TuningConfig, new: TuningConfig) -> str:
        """Ops that went to floating point or to integers; empty where that is not all that changed."""
        before, after = set(old.quantized_ops), set(new.quantized_ops)
        back, to_integers = self._named(before - after), self._named(after - before)
        same = old.recipes == new.recipes and old.sampling_size == new.sampling_size
        if not same or bool(back) == bool(to_integers) or _differing(old, new) != len(before ^ after):
            return ""
        where = "back to fp32" if back else "to integers"
        return f"{_listed(back or to_integers)} {where}"

    def _named(self, ops: Iterable[str]) -> list[str]:
        return sorted({self._groups.get(name, name) for name in ops})

    def _gain(self, old: Trial, new: Trial) -> str:
        if old.accuracy is None or new.accuracy is None:
            return ""
        change = new.accuracy - old.accuracy
        if self._in_points:
            return f"{100 * change:+.1f} points" if abs(change) >= 0.0005 else f"{100 * change:+.2f} points"
        gained = change if self._higher_is_better else -change
        return "no change" if not gained else f"{abs(gained):.3g} {'better' if gained > 0 else 'worse'}"


def _differing(one: TuningConfig, other: TuningConfig) -> int:
    """Ops with another config."""
    return sum(mine != others for mine, others in zip(one.ops, other.ops, strict=True))


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{len(names)} ops"
