"""MSE: like basic, but the order of fallback comes from one probe of errors instead of a trial per op."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from distune.space.op_config import Mode, TuningConfig
from distune.strategies.base import TuneGenerator
from distune.strategies.basic import BasicTuneStrategy
from distune.strategies.fallback import accumulate, score_order, sensitivity_probe
from distune.strategies.prefix_search import Search
from distune.strategies.registry import strategy_registry
from distune.strategies.settings import one_of, whole_number
from distune.strategies.stage import ProbeResult, ProbeStage

_OP_TYPE_WISE_TRIALS = 5
SCORES = ("output", "tensor")


@strategy_registry
class MSETuneStrategy(BasicTuneStrategy):
    """Falls back in the order of the mean squared error between fp32 and quantized tensors.

    All ops are scored by one probe, spread over the workers, so that ranking them takes no trial.
    """

    settings: ClassVar = {
        "op_type_wise_trials": f"Trials of the op-type-wise stage at most (default: {_OP_TYPE_WISE_TRIALS}).",
        "confidence_batches": "Batches that the errors are averaged over (default: 2).",
        "score": "output: error of the model's output with the op alone quantized (default); tensor: error of the op's "
        "own output in the quantized model, which includes what the ops before it did.",
    }

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        whole_number(kwargs, "confidence_batches", 2)
        one_of(kwargs, "score", SCORES)

    def op_type_wise_trials(self) -> int:
        affordable = min(_OP_TYPE_WISE_TRIALS, self.record.remaining // 4)
        return whole_number(self.context.kwargs, "op_type_wise_trials", affordable, minimum=0)

    def fallback(self, base: TuningConfig, precision: Mode) -> TuneGenerator:
        """One probe, then growing prefixes of its order; the first of them is one group alone."""
        groups = self.space.quantized_groups(base, precision)
        batches = whole_number(self.context.kwargs, "confidence_batches", 2)
        if one_of(self.context.kwargs, "score", SCORES) == "output":
            wanted = sensitivity_probe(self.space, base, groups, precision, batches)
        else:
            name = "tensor error of each op"
            wanted = ProbeStage(name, "op_mse", base, groups, split="batches", batches=batches)
        probe: ProbeResult = yield wanted
        if not probe.scores and not probe.finished:
            self.context.tell("mse: no op could be scored, so fallback goes in graph order")
        order = score_order(probe.scores, groups)
        search = Search.of(self.context)
        yield from accumulate(self.space, base, order, precision, lambda: self.record.remaining, start=1, search=search)
