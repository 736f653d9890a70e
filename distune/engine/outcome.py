"""What a run comes to: everything that the result file, the console and the Python API tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from distune.config.job import TuningJob
from distune.distributed.transport import WorkerInfo
from distune.engine.quarantine import Quarantined
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Stage, Trial
from distune.trial.messages import Accuracy, Exported, Inspection

OutcomeName = Literal["met", "not_met", "budget_spent", "interrupted", "failed", "not_judged"]

EXIT_CODES: Mapping[OutcomeName, int] = {
    "met": 0,
    "not_judged": 0,
    "failed": 1,
    "not_met": 3,
    "budget_spent": 4,
    "interrupted": 75,
}
"""Exit code of the command line by outcome; 2 is wrong configuration or usage, where there is no outcome."""


@dataclass(frozen=True)
class StageRecord:
    """One stage as it went."""

    name: str
    exit: str
    use: str
    candidates: int | None
    judged: int
    seconds: float
    met: bool = False

    @classmethod
    def of(cls, stage: Stage, candidates: int | None, judged: int, seconds: float, met: bool) -> StageRecord:
        """The record of ``stage``."""
        return cls(stage.name, stage.exit, stage.use, candidates, judged, seconds, met)


@dataclass(frozen=True)
class Timing:
    """Where the time went, in seconds. ``quantize``, ``accuracy`` and ``latency`` are summed over the ranks.

    Attributes:
        inference_s: The part of ``accuracy_s`` spent in inference alone; 0 where an eval_func hides it.
        compile_s: Compiling models for a deployment; part of ``accuracy_s`` and ``latency_s``.
        idle_s: Time that ranks spent without work, summed over the ranks.
    """

    total_s: float = 0.0
    startup_s: float = 0.0
    baseline_s: float = 0.0
    calibration_s: float = 0.0
    quantize_s: float = 0.0
    accuracy_s: float = 0.0
    inference_s: float = 0.0
    compile_s: float = 0.0
    latency_s: float = 0.0
    idle_s: float = 0.0


@dataclass(frozen=True)
class RunOutcome:
    """See the module's description.

    Attributes:
        best: The winner; where nothing met, the best effort by accuracy.
        exported: Files of the best model; ``None`` where there is none.
        fallback_order: Groups in the order in which fallback took them.
        op_impact: What returning each group alone to floating point gained in accuracy (positive: better).
        tied: Trials that could not be told apart from the winner by the objective.
        given_back: Groups that the minimality pass quantized in the model that was accepted first.
        failure: Why the run failed or was interrupted.
        quarantined: Configs that have cost two child processes.
    """

    outcome: OutcomeName
    job: TuningJob
    ranks: int
    workers: tuple[WorkerInfo, ...]
    lost_ranks: Mapping[int, str]
    inspection: Inspection | None = None
    space: TuningSpace | None = None
    baseline: Accuracy | None = None
    target: float | None = None
    best: Trial | None = None
    exported: Exported | None = None
    trials: tuple[Trial, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    fallback_order: tuple[str, ...] = ()
    op_impact: Mapping[str, float] = field(default_factory=dict)
    tied: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    timing: Timing = Timing()
    failure: str = ""
    quarantined: tuple[Quarantined, ...] = ()
    given_back: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Exit code of the command line."""
        return EXIT_CODES[self.outcome]
