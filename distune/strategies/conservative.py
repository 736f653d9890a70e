"""Conservative (``quant_level: 0``): from fp32, one op type after the other into its default quantization.

What it gives besides a model is insight: what each op type costs in accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.default import default_config
from distune.strategies.registry import strategy_registry
from distune.strategies.stage import Candidate, Stage, StageResult, Trial

_FIRST = (("conv",), ("matmul", "gemm", "linear", "bmm"))
"""What op types are called that are worth quantizing most, in order; the others follow as the model has them."""


@dataclass(frozen=True)
class _Tried:
    """One op type, the trial that added it, and the accuracy before."""

    op_type: str
    trial: Trial
    before: float


@strategy_registry
class ConservativeTuneStrategy(TuneStrategy):
    """The strategy of ``quant_level: 0``: quantizes op type by op type and keeps what still meets the criterion.

    The start is judged like any other config: it is the fp32 model only as far as the user's constraints and recipes
    leave it so.
    """

    def next_tune_cfg(self) -> TuneGenerator:
        start = Stage("start", [Candidate(self.space.fp32(), "nothing quantized")], latency="none", ends_run=False)
        result: StageResult = yield start
        if not result.finished:
            yield from self.op_type_by_op_type()

    def op_type_by_op_type(self) -> TuneGenerator:
        """One trial an op type, on top of the types kept before; then the report."""
        default = default_config(self.space, self.space.sampling_sizes[0])
        kept = self.space.fp32()
        accuracy = self.record.baseline
        tried: list[_Tried] = []
        types = op_type_order(self.space, default)
        for op_type in types:
            candidate = with_op_type(self.space, kept, default, op_type)
            result: StageResult = yield Stage(
                f"op type {op_type}", [Candidate(candidate, op_type)], use="base", ends_run=False
            )
            for trial in result.trials:
                tried.append(_Tried(op_type, trial, accuracy))
                if trial.met and trial.accuracy is not None:
                    kept, accuracy = candidate, trial.accuracy
            if result.finished:
                break
        self.context.tell(self._report(tried, types[len(tried) :]))

    def _report(self, tried: Sequence[_Tried], untried: Sequence[str]) -> str:
        """What each op type costs, one line a type."""
        lines = ["accuracy lost by quantizing each op type, on top of those kept before it:"]
        lines += [f"  {item.op_type}: {self._cost(item.trial, item.before)}" for item in tried]
        lines += [f"  {op_type}: not tried, the run was over" for op_type in untried]
        return "\n".join(lines)

    def _cost(self, trial: Trial, before: float) -> str:
        if trial.accuracy is None:
            return f"failed ({trial.reason})" if trial.reason else "failed"
        lost = before - trial.accuracy if self.context.criterion.higher_is_better else trial.accuracy - before
        fate = "kept in int8" if trial.met else f"left in fp32, the target is {self.record.target:.6g}"
        return f"{lost:+.6g} (accuracy {trial.accuracy:.6g}; {fate})"


def op_type_order(space: TuningSpace, default: TuningConfig) -> tuple[str, ...]:
    """Types of the groups that ``default`` quantizes: convolutions, then matrix products, then the others."""

    def priority(op_type: str) -> int:
        name = op_type.lower()
        return next((place for place, words in enumerate(_FIRST) if any(w in name for w in words)), len(_FIRST))

    types = dict.fromkeys(space.group_type(group) for group in space.quantized_groups(default))
    return tuple(sorted(types, key=priority))


def with_op_type(space: TuningSpace, config: TuningConfig, default: TuningConfig, op_type: str) -> TuningConfig:
    """``config`` with every group of ``op_type`` as it is in ``default``."""
    changes = {
        name: default.by_name[name]
        for group, names in space.groups.items()
        if space.group_type(group) == op_type
        for name in names
    }
    # An fp32 config has lost its sampling size, since it needs no calibration.
    return space.effective(replace(config.with_ops(changes), sampling_size=default.sampling_size))
