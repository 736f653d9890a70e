"""HAWQ v2: falls back in the order of the Hessian trace.

Source: Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", arXiv:1911.03852. Of the
paper the trace of the loss's Hessian with respect to an op's weights is taken, as a measure of how sensitive the op is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from distune.errors import UsageError
from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.default import default_config, default_stage
from distune.strategies.fallback import accumulate, score_order
from distune.strategies.prefix_search import Search
from distune.strategies.registry import strategy_registry
from distune.strategies.settings import whole_number
from distune.strategies.stage import ProbeResult, ProbeStage, StageResult

_LOSS = "hawq_v2_loss"


@strategy_registry
class HAWQ_V2TuneStrategy(TuneStrategy):
    """Falls back in the order of the Hessian trace of each op's weights; needs a backend with gradients."""

    settings: ClassVar = {
        _LOSS: "The loss (output, target) -> scalar tensor whose Hessian is taken: a function, or module:name or "
        "file.py:name of one.",
        "confidence_batches": "Batches that the traces are averaged over (default: 2).",
    }
    required: ClassVar = (_LOSS,)

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        whole_number(kwargs, "confidence_batches", 2)
        loss = kwargs[_LOSS]
        if not callable(loss) and not isinstance(loss, str):
            raise UsageError(f"{_LOSS} must be a function or the name of one, not {loss!r}")

    def next_tune_cfg(self) -> TuneGenerator:
        result: StageResult = yield default_stage(self.space)
        if result.finished:
            return
        best = result.best
        base = best.config if best is not None else default_config(self.space, self.space.sampling_sizes[0])
        for precision in self.space.precisions:
            groups = self.space.quantized_groups(base, precision)
            # The loss is not an argument of the probe: workers take it from the job, where it travelled once.
            probe: ProbeResult = yield ProbeStage(
                "Hessian trace of each op",
                "hessian_trace",
                base,
                groups,
                split="batches",
                batches=whole_number(self.context.kwargs, "confidence_batches", 2),
            )
            if not probe.scores and not probe.finished:
                raise UsageError(
                    "strategy hawq_v2: the backend gave no Hessian traces (the warning above says why); gradients "
                    "need the PyTorch backend, for other models use strategy mse or basic"
                )
            order = score_order(probe.scores, groups)
            search = Search.of(self.context)
            yield from accumulate(
                self.space, base, order, precision, lambda: self.record.remaining, start=1, search=search
            )
