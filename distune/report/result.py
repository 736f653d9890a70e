"""``RunResult``: what is in ``result.json``, field by field.

What was not measured is null, never 0 or infinity. The file is written for every ending of a run. The docstrings here
are the descriptions of the JSON schema (``report.result_schema``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distune.engine.outcome import OutcomeName
from distune.errors import UsageError
from distune.report.plain import Misfit, from_plain, to_plain
from distune.strategies.stage import Verdict

SCHEMA_VERSION = 1
"""Grows when a field changes its meaning or goes away."""


class DamagedResultError(UsageError):
    """The file is no ``result.json``, or only a part of one."""


@dataclass(frozen=True)
class Host:
    """A node of the run.

    Attributes:
        name: Node name.
        cpu: Processor model.
        isa: Instruction sets that matter to quantized kernels, e.g. ``avx512_vnni``.
    """

    name: str
    cpu: str
    isa: tuple[str, ...]


@dataclass(frozen=True)
class Criterion:
    """The accuracy to keep.

    Attributes:
        kind: ``relative`` (the loss allowed is ``tolerance * |baseline|``), ``absolute`` (it is ``tolerance``) or
            ``threshold`` (a constraint of ``tuning.metrics``: ``tolerance`` is the target).
        tolerance: The loss allowed, as a fraction or in the metric's unit.
        higher_is_better: Direction of the metric.
        target: The accuracy that meets the criterion; exactly on target meets. Null before the baseline is known.
    """

    kind: Literal["relative", "absolute", "threshold"]
    tolerance: float
    higher_is_better: bool
    target: float | None = None


@dataclass(frozen=True)
class Baseline:
    """The fp32 model.

    Attributes:
        accuracy: The accuracy that the criterion looks at.
        metrics: Every metric by name.
        latency_ms: Median milliseconds of one run, from the pairing with the best model.
        size_bytes: Bytes of the model as it would be exported.
    """

    accuracy: float | None
    metrics: Mapping[str, float | None]
    latency_ms: float | None
    size_bytes: int | None


@dataclass(frozen=True)
class LatencyFigures:
    """A latency measured against fp32 in alternating blocks of one process.

    Attributes:
        ratio: Median of the blocks' candidate-to-fp32 ratios; below 1 is faster.
        ci_low, ci_high: 95% confidence interval of the median.
        candidate_ms, baseline_ms: Median milliseconds of one run.
        batch_size: Samples in the feed that was timed.
        threads: Intra-op threads.
        host: Where it was measured.
        noisy: The interval stayed wider than asked for.
    """

    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    candidate_ms: float | None
    baseline_ms: float | None
    batch_size: int
    threads: int
    host: str
    noisy: bool = False


@dataclass(frozen=True)
class Best:
    """The model in ``best/``.

    Attributes:
        trial: Id of its trial.
        best_effort: It does not meet the criterion: it is the best accuracy that was found, not a success.
        config_hash: Identity of its tuning config.
        accuracy: Its accuracy on the complete evaluation set.
        samples: Samples evaluated.
        latency: Against fp32.
        size_bytes: Bytes of the exported model.
        footprint_bytes: Peak resident bytes of a fresh process that loads and runs it.
        ops_total: Ops with weights in the model.
        ops_quantized: Of those, ops that its tuning config quantizes.
        ops_executed_int8: Of those, ops that really run on integers, read from the optimised graph.
        fallback_ops: Ops that could be quantized and are kept in floating point, in graph order.
        fallback_reasons: Why, by op; also why an op that the config quantizes does not run on integers.
    """

    trial: int
    best_effort: bool
    config_hash: str
    accuracy: float | None
    samples: int
    latency: LatencyFigures | None
    size_bytes: int | None
    footprint_bytes: int | None
    ops_total: int
    ops_quantized: int
    ops_executed_int8: int | None
    fallback_ops: tuple[str, ...]
    fallback_reasons: Mapping[str, str]


@dataclass(frozen=True)
class Group:
    """Ops that fall back together.

    Attributes:
        name: That of its first op.
        ops: Its ops in graph order.
    """

    name: str
    ops: tuple[str, ...]


@dataclass(frozen=True)
class ParetoPoint:
    """A trial that no other one beats in accuracy, latency and size at once, or in all metrics that are optimized.

    Attributes:
        trial: Its id.
        accuracy: Its accuracy.
        latency_ratio: Its latency against fp32; below 1 is faster. Null where it was not measured and is not optimized.
        size_bytes: Bytes of its exported model.
        verdict: Whether it meets the criterion.
        metrics: The optimized ones of ``tuning.metrics``.
    """

    trial: int
    accuracy: float
    latency_ratio: float | None
    size_bytes: int | None
    verdict: Verdict
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageEntry:
    """A stage as it went.

    Attributes:
        name: Its name.
        exit: ``first`` (the first that meets ended it) or ``none`` (all were judged).
        use: What its answers decided: ``base``, ``rank``, ``best`` or ``prefix``.
        candidates: Tuning configs that it had, null where nobody counted.
        judged: Of those, how many were decided.
        seconds: How long it took.
        met: One of them met.
    """

    name: str
    exit: str
    use: str
    candidates: int | None
    judged: int
    seconds: float
    met: bool


@dataclass(frozen=True)
class TrialEntry:
    """A tuning config that was judged.

    Attributes:
        id: Position among the judged trials, from 1; 0 for a model that was not judged.
        stage: The stage that judged it first.
        label: What the candidate stands for, e.g. the op that it returns to fp32.
        config_hash: Identity of its tuning config.
        parameters: The user's own tuned parameters.
        recipes: Recipes that are not at their default.
        sampling_size: Calibration samples; null where nothing is calibrated.
        accuracy: Null where the trial failed.
        accuracy_low, accuracy_high: Bounds after an early verdict, else equal to the accuracy.
        metrics: Every metric by name.
        verdict: ``met``, ``not_met``, ``failed`` or ``not_judged``.
        samples: Samples evaluated.
        latency: Against fp32; null where it was not measured.
        size_bytes: Bytes of the exported model.
        rank, host: Where it was judged.
        start_s, end_s: When, in seconds since the run began.
        attempts: How often it was handed out.
        reason: Why it failed.
        is_fp32: Its tuning config leaves every op as it is: the fp32 model, judged once more. Null in older files.
    """

    id: int
    stage: str
    label: str
    config_hash: str
    parameters: Mapping[str, Any]
    recipes: Mapping[str, Any]
    sampling_size: int | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    metrics: Mapping[str, float | None]
    verdict: Verdict
    samples: int
    latency: LatencyFigures | None
    size_bytes: int | None
    rank: int | None
    host: str
    start_s: float
    end_s: float
    attempts: int
    reason: str
    is_fp32: bool | None = None


@dataclass(frozen=True)
class TimeSpent:
    """Where the time went, in seconds; null where nothing of the kind was done.

    Attributes:
        total_s: From start to end.
        startup_s: Until every worker had loaded the model.
        baseline_s: Scoring the fp32 model.
        calibration_s: Collecting statistics, summed over the ranks.
        quantize_s: Rewriting graphs and building sessions, summed over the ranks.
        accuracy_s: Evaluating trials, summed over the ranks.
        inference_s: Of that, inference alone; null where a user's eval_func hides it.
        compile_s: Compiling models for a deployment, within the two around it; null where the backend compiles nothing.
        latency_s: Measuring latency.
        idle_s: Ranks without work, summed over the ranks.
    """

    total_s: float
    startup_s: float | None
    baseline_s: float | None
    calibration_s: float | None
    quantize_s: float | None
    accuracy_s: float | None
    inference_s: float | None
    compile_s: float | None
    latency_s: float | None
    idle_s: float


@dataclass(frozen=True)
class QuarantineEntry:
    """A tuning config that has cost two child processes: it was not tried again and cannot win.

    Attributes:
        config_hash: Identity of the tuning config.
        trial: Id of its trial; null where it was never decided.
        label: What the candidate stands for.
        work: What cost the processes, e.g. ``judging it``.
        reason: How the second of them ended.
    """

    config_hash: str
    trial: int | None
    label: str
    work: str
    reason: str


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        schema_version: Version of this form.
        distune_version: Version of distune that wrote it.
        outcome: ``met``, ``not_met`` (the space is exhausted), ``budget_spent`` (trials or time ran out before it was
            met), ``interrupted`` (run again to resume), ``failed``, or ``not_judged`` (no way to evaluate was given:
            quantized once).
        failure: Why it failed or was interrupted, else empty.
        strategy: Name of the strategy.
        seed: Of every random choice.
        ranks: Workers that the run began with.
        lost_ranks: Ranks that died.
        backend: The framework.
        versions: Version of every library that decides about numbers.
        hosts: The nodes.
        session_options: What every session was created with; deploy with the same.
        criterion: The accuracy to keep; null where nothing was judged.
        baseline: The fp32 model; null where it was not looked at.
        best: The model in ``best/``; null where there is none.
        fallback_order: Groups in the order in which fallback took them.
        op_impact: What returning each group alone to floating point gained in accuracy; positive is better.
        groups: Ops that fall back together, in graph order.
        pareto: The front of accuracy, latency and size among the trials whose latency was measured, fastest first;
            where ``tuning.metrics`` optimizes two or more, the front of those among the trials that meet, by id.
        skipped_candidates: What was left out and why, e.g. for want of budget.
        warnings: What the user should know.
        stages: The stages in order.
        trials: The judged trials, by id.
        timing: Where the time went.
        quarantined: Tuning configs that have cost two child processes each.
        given_back: Groups that the model accepted first had in floating point, and the minimality pass quantized.
    """

    schema_version: int
    distune_version: str
    outcome: OutcomeName
    failure: str
    strategy: str
    seed: int
    ranks: int
    lost_ranks: tuple[int, ...]
    backend: str
    versions: Mapping[str, str]
    hosts: tuple[Host, ...]
    session_options: Mapping[str, Any]
    criterion: Criterion | None
    baseline: Baseline | None
    best: Best | None
    fallback_order: tuple[str, ...]
    op_impact: Mapping[str, float | None]
    groups: tuple[Group, ...]
    pareto: tuple[ParetoPoint, ...]
    skipped_candidates: tuple[str, ...]
    warnings: tuple[str, ...]
    stages: tuple[StageEntry, ...]
    trials: tuple[TrialEntry, ...]
    timing: TimeSpent
    quarantined: tuple[QuarantineEntry, ...] = ()
    given_back: tuple[str, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values; NaN and infinity become ``None``."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self) -> str:
        """The text of ``result.json``."""
        return json.dumps(self.to_plain(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RunResult:
        """Inverse of ``to_json``.

        Raises:
            DamagedResultError: The text is not a result, or half of one.
            UsageError: It is a result of another schema version.
        """
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise DamagedResultError(f"this is not a result.json: {error}") from error
        version = plain.get("schema_version") if isinstance(plain, dict) else None
        if not isinstance(version, int):
            raise DamagedResultError("this is not a result.json: it names no schema version")
        if version != SCHEMA_VERSION:
            writer = plain.get("distune_version")
            raise UsageError(
                f"this is not a result.json of schema version {SCHEMA_VERSION} but of {version!r}"
                + (f"; read it with distune {writer}" if writer else "")
            )
        try:
            return from_plain(cls, plain)
        except Misfit as error:
            raise DamagedResultError(f"this is not a valid result.json: {error}") from error
