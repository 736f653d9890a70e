"""What a strategy asks for and what it gets back.

A strategy yields a ``Stage`` (many tuning configs at once), a single tuning config (a stage of one), or a
``ProbeStage`` (questions about the model that are not trials).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distune.evaluation.criterion import best_first
from distune.space.op_config import TuningConfig
from distune.trial.messages import Latency

Verdict = Literal["met", "not_met", "failed", "not_judged"]


@dataclass(frozen=True)
class Trial:
    """One tuning config that was judged and whose result a decision used.

    Attributes:
        id: Position among the judged trials of the run, from 1; the same for any number of ranks.
        stage: Name of the stage that judged it first.
        label: What the candidate stands for, e.g. the op that it returns to fp32; empty when nothing was said.
        verdict: ``not_judged`` where it was ranked only, on the decisive samples, and did not promise to meet.
        accuracy: ``None`` where the trial failed, or ended before its accuracy was known (``complete`` is false).
        accuracy_low, accuracy_high: Bounds after an early verdict.
        score: The accuracy as far as the decisive samples tell, where it was ranked by them.
        latency: ``None`` where it was not measured.
        footprint_ratio: ``footprint_bytes`` divided by fp32's, measured on the same host.
        reason: Why it failed.
    """

    id: int
    stage: str
    config: TuningConfig
    verdict: Verdict
    label: str = ""
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    complete: bool = True
    latency: Latency | None = None
    size_bytes: int | None = None
    footprint_bytes: int | None = None
    footprint_ratio: float | None = None
    ops_executed_int8: int | None = None
    rank: int | None = None
    host: str = ""
    start_s: float = 0.0
    end_s: float = 0.0
    attempts: int = 1
    reason: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """The criterion is met by something else than the fp32 model, which meets it by nature and is no success."""
        return self.verdict == "met" and not self.config.is_fp32


@dataclass(frozen=True)
class Candidate:
    """A tuning config with a word on what it stands for, e.g. the op or recipe that it changes."""

    config: TuningConfig
    label: str = ""


@dataclass(frozen=True)
class Stage:
    """A batch of candidates and the rule by which their answers are used.

    Attributes:
        name: Shown to the user, e.g. ``op-type-wise``.
        candidates: In the order in which decisions are taken. May be lazy and endless: it is drawn from as needed.
        exit: ``first`` ends the stage with the first candidate, in candidate order, that meets; ``none`` judges all.
        use: What the answers decide: the next base config (``base``), an order of ops (``rank``), the best objective
            (``best``), or the shortest growing prefix that meets (``prefix``).
        accuracy: What is needed of candidates that do not meet: the ``verdict`` alone, the ``exact`` accuracy, or what
            is enough for ``ranking`` them (the exact accuracy too, unless the job ranks on the decisive samples).
            Candidates that meet are always judged in full.
        floor: With ``verdict``: accuracies that are not worse than this are needed exactly as well.
        latency: Whose latency is measured before the stage is answered.
        reserve: Trials of the budget that this stage must leave to later ones.
        total: Number of candidates where it is known although ``candidates`` is lazy.
        order: The fallback order of ops (groups) that the candidates follow; journalled as a decision.
        base: The config from which the candidates of a ``rank`` stage differ by one op (group) each; their impact is
            the accuracy gained over it. ``None`` means the best config so far.
        ends_run: Whether a candidate that meets ends the run where the first success does (``timeout: 0``). A
            strategy that looks for something better than its first success says no, and ends by itself.
    """

    name: str
    candidates: Iterable[TuningConfig | Candidate]
    exit: Literal["first", "none"] = "first"
    use: Literal["base", "rank", "best", "prefix"] = "base"
    accuracy: Literal["verdict", "ranking", "exact"] = "exact"
    latency: Literal["none", "meeting", "all"] = "meeting"
    reserve: int = 0
    total: int | None = None
    order: tuple[str, ...] = ()
    base: TuningConfig | None = None
    ends_run: bool = True
    floor: float | None = None


def most_accurate(trials: Iterable[Trial], higher_is_better: bool) -> Trial | None:
    """The trial of the best accuracy, the earlier one among equals; ``None`` where none is known to be a number."""
    scored = [trial for trial in trials if trial.accuracy is not None and not math.isnan(trial.accuracy)]
    return min(scored, key=lambda trial: best_first(trial.accuracy, higher_is_better), default=None)


@dataclass(frozen=True)
class StageResult:
    """The answers to a stage.

    Attributes:
        trials: The judged candidates, in candidate order. Shorter than the stage where it ended early.
        met: The first trial that met, ``None`` when none did.
        best: The most accurate trial (see ``most_accurate``).
        finished: The run is over (first success, budget, timeout, interruption): nothing more will be judged.
    """

    trials: tuple[Trial, ...]
    met: Trial | None
    best: Trial | None
    finished: bool


@dataclass(frozen=True)
class ProbeStage:
    """Questions about the model, spread over the workers; costs no trial.

    Attributes:
        kind: As in ``messages.Probe``.
        config: The tuning config that it is about.
        ops: Ops (groups) to score; they are split over the workers.
        quantized: Where ops of ``config`` that are fp32 there are to be quantized as in another one: that one.
        args: Further arguments of the kind.
        split: Whether the work is divided by ``ops`` or by ``batches``. The scores are the same either way and for
            any number of workers: batches are always averaged in their order.
        batches: Batches that the probe looks at.
    """

    name: str
    kind: str
    config: TuningConfig
    ops: tuple[str, ...] = ()
    quantized: TuningConfig | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    split: Literal["ops", "batches"] = "ops"
    batches: int = 2

    @property
    def configs(self) -> tuple[TuningConfig, ...]:
        """The configs whose statistics it needs."""
        return (self.config,) if self.quantized is None else (self.config, self.quantized)


@dataclass(frozen=True)
class ProbeResult:
    """Scores by op (group) name, merged over the workers in a fixed order; empty when the run is over."""

    scores: Mapping[str, float]
    finished: bool = False
