"""MSE v2: falls back the op of highest impact until the criterion is met, then reverts those of lowest impact.

The impact of an op is what changing it alone does to the error of the model's output, scored anew in every step, from
the config that the step begins with.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from distune.evaluation.criterion import best_first
from distune.space.op_config import Mode, TuningConfig
from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.default import default_config, default_stage
from distune.strategies.registry import strategy_registry
from distune.strategies.settings import whole_number
from distune.strategies.stage import Candidate, ProbeResult, ProbeStage, Stage, StageResult


@strategy_registry
class MSE_V2TuneStrategy(TuneStrategy):
    """Falls back op by op, each time the one whose fallback lowers the output's error most, then reverts.

    Scoring is spread over the workers and costs no trial; each step costs one.
    """

    settings: ClassVar = {
        "confidence_batches": "Batches that the impact of an op is averaged over (default: 2).",
    }

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        whole_number(kwargs, "confidence_batches", 2)

    def next_tune_cfg(self) -> TuneGenerator:
        result: StageResult = yield default_stage(self.space)
        if result.finished:
            return
        best = result.best
        base = best.config if best is not None else default_config(self.space, self.space.sampling_sizes[0])
        for precision in self.space.precisions:
            fallen = yield from self._fall_back(base, precision)
            if fallen:
                yield from self._revert(base, fallen, precision)
                return

    def _fall_back(self, base: TuningConfig, precision: Mode) -> Generator[Any, Any, list[str]]:
        """Greedy fallback from ``base``; the groups that fell back, or none where it did not come to meet."""
        left = list(self.space.quantized_groups(base, precision))
        fallen: list[str] = []
        while len(left) > 1:  # without the last one it would be the fp32 model
            config = self.space.fallback(base, fallen, precision)
            group = yield from self._least_error(config, left, "fallback", base)
            left.remove(group)
            fallen.append(group)
            candidate = Candidate(self.space.fallback(base, fallen, precision), group)
            name = f"fallback {len(fallen)} to {precision}"
            result: StageResult = yield Stage(
                name, [candidate], accuracy="verdict", ends_run=False, order=tuple(fallen)
            )
            if result.met is not None:
                return fallen
        return []

    def _revert(self, base: TuningConfig, fallen: Sequence[str], precision: Mode) -> TuneGenerator:
        """Quantize groups again, the one of lowest impact first, as long as the criterion is met."""
        fallen = list(fallen)
        while len(fallen) > 1:  # without the last one it would be ``base``, which does not meet
            config = self.space.fallback(base, fallen, precision)
            group = yield from self._least_error(config, fallen, "revert", base)
            fallen.remove(group)
            candidate = Candidate(self.space.fallback(base, fallen, precision), group)
            name = f"revert of {group}"
            result: StageResult = yield Stage(
                name, [candidate], accuracy="verdict", ends_run=False, order=tuple(fallen)
            )
            if result.met is None:
                return

    def _least_error(
        self, config: TuningConfig, groups: Sequence[str], direction: Literal["fallback", "revert"], base: TuningConfig
    ) -> Generator[Any, Any, str]:
        """The group whose change alone leaves the smallest output error, the first in graph order among equals.

        Falling back, that is the group of highest impact; reverting, the one of lowest.
        """
        if len(groups) == 1:
            return groups[0]
        wanted = set(groups)
        ordered = [group for group in self.space.groups if group in wanted]
        batches = whole_number(self.context.kwargs, "confidence_batches", 2)
        name = "impact of each fallback" if direction == "fallback" else "impact of each revert"
        probe: ProbeResult = yield ProbeStage(
            name,
            "op_sensitivity",
            config,
            tuple(ordered),
            base if direction == "revert" else None,
            {"direction": direction},
            split="ops",
            batches=batches,
        )
        if not probe.scores and not probe.finished:
            self.context.tell(f"mse_v2: no op could be scored for {direction}, so graph order is kept")
        return min(ordered, key=lambda group: best_first(probe.scores.get(group), False))
