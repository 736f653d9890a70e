"""Everything that travels between the master and the workers: requests and results.

A ``Request`` carries one body; the worker answers every request with exactly one ``Result`` whose body is the
matching answer or a ``Failure``. ``Broadcast`` bodies are handled in order with the requests and are not answered.
All of it is frozen and made of plain values and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distune.space.capability import Capability
from distune.space.op_config import TuningConfig

FailureKind = Literal["error", "user_error", "crash", "deadline", "memory", "lost", "cancelled"]

# ------------------------------------------------------------------------------------------------- master -> worker


@dataclass(frozen=True)
class Inspect:
    """Load the model and say what can be done with it. Answer: ``Inspection``."""


@dataclass(frozen=True)
class Survey:
    """Score the fp32 model on the evaluation batches whose index is ``shard`` modulo ``shards``. Answer: ``Surveyed``.

    What all shards say is the same for any number of shards (``Inspection.fp32_in_shards``).
    """

    shard: int
    shards: int


@dataclass(frozen=True)
class Baseline:
    """Score the fp32 model on the complete evaluation set. Answer: ``Accuracy``.

    Attributes:
        surveys: What the shards of a ``Survey`` said, all of them: the score is put together from it. Empty: the
            worker scores all batches itself, to the same end.
    """

    surveys: tuple[Surveyed, ...] = ()


@dataclass(frozen=True)
class Calibrate:
    """Collect the calibration statistics of shard ``shard`` of ``shards``. Answer: ``Statistics``.

    Shard ``s`` takes the batches whose index is ``s`` modulo ``shards``; the merged result is the same for any
    number of shards.

    Attributes:
        variant: Recipes that change the graph before calibration, sorted by name; empty for the plain fp32 graph.
        sampling_size: Samples in all shards together.
        histograms: Count how often values occur, too (``TuningConfig.needs_histograms``).
    """

    sampling_size: int
    shard: int
    shards: int
    variant: tuple[tuple[str, Any], ...] = ()
    histograms: bool = True


@dataclass(frozen=True)
class Judge:
    """Quantize by ``config`` and score. Answer: ``Accuracy``.

    Attributes:
        config: The effective tuning config.
        accuracy: ``verdict`` needs only to know whether the criterion is met, ``ranking`` a score to compare it by,
            ``exact`` the value, ``survey`` that and the samples that decide about configs that differ in one op. What
            meets, or may meet, is always scored in full.
        target: The accuracy that meets the criterion; ``None`` where nothing is judged against it.
        higher_is_better: Direction of ``target``.
        floor: With ``verdict``: accuracies that are not worse than this are needed exactly although they fail.
        targets: Where each metric must meet on its own instead: name, target and direction of each.
        deployed: Score the model as it is deployed, where the backend judges another form of it.
        base: With ``ranking``: hash of the config whose survey chose the samples to score.
        decisive: With ``ranking``: those samples (``evaluation.ranking``).
    """

    config: TuningConfig
    accuracy: Literal["verdict", "ranking", "exact", "survey"] = "exact"
    target: float | None = None
    higher_is_better: bool = True
    floor: float | None = None
    targets: tuple[tuple[str, float, bool], ...] = ()
    deployed: bool = False
    base: str = ""
    decisive: str = ""


@dataclass(frozen=True)
class MeasureLatency:
    """Time the model of ``config`` against fp32, in a quiet window. Answer: ``Latency``."""

    config: TuningConfig


@dataclass(frozen=True)
class MeasureFootprint:
    """Peak resident set of a fresh process that loads and runs the model of ``config``. Answer: ``Footprint``."""

    config: TuningConfig


@dataclass(frozen=True)
class Probe:
    """A question about the model that is not a trial. Answer: ``ProbeAnswer``.

    Attributes:
        kind: What is asked, e.g. ``op_mse`` (MSE between fp32 and quantized tensors), ``op_sensitivity`` (output error
            with each op changed alone), ``hessian_trace``.
        config: The tuning config that the question is about.
        ops: Op names (groups) that this shard answers for; empty means all.
        args: Further arguments of the kind.
        shard, shards: Which part of the batches, where the kind splits by batches.
    """

    kind: str
    config: TuningConfig
    ops: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1


@dataclass(frozen=True)
class Diagnose:
    """Compare tensors of the model of ``config`` with fp32's. Answer: ``ProbeAnswer``, with what
    ``Backend.diagnose`` gives in ``data``.

    Attributes:
        ops: Op names.
        batches: Numbers of batches of the calibration data (else of the evaluation data), from 1.
        tensors: Which of an op.
    """

    config: TuningConfig
    ops: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    tensors: Literal["all", "activation", "weight"] = "all"


@dataclass(frozen=True)
class Export:
    """Quantize by ``config`` and return the files of the deployable model. Answer: ``Exported``."""

    config: TuningConfig


RequestBody = (
    Inspect | Survey | Baseline | Calibrate | Judge | MeasureLatency | MeasureFootprint | Probe | Diagnose | Export
)

DOING: Mapping[type[RequestBody], str] = {
    Inspect: "loading the model",
    Survey: "scoring fp32",
    Baseline: "scoring fp32",
    Calibrate: "calibrating",
    Judge: "judging a trial",
    MeasureLatency: "measuring latency",
    MeasureFootprint: "measuring memory",
    Probe: "probing ops",
    Diagnose: "comparing tensors",
    Export: "writing the model",
}
"""What a worker does with a request, in words."""


@dataclass(frozen=True)
class LoadStatistics:
    """Merged calibration statistics, to be kept by the worker until the run ends."""

    variant: tuple[tuple[str, Any], ...]
    sampling_size: int
    blob: bytes


@dataclass(frozen=True)
class StageOpened:
    """The trials that follow, until the stage is closed, differ from ``base`` in one op or group of ops each.

    What they compute alike may be computed once. A worker that was not told computes it every time, to the same end.
    """

    stage: str
    base: TuningConfig


@dataclass(frozen=True)
class StageClosed:
    """A stage has ended: caches of configs other than ``base`` may be dropped.

    Attributes:
        stage: Its name.
        base: Hash of the config that the next stage starts from.
        order: Op order that the stage decided; empty where it decided none.
    """

    stage: str
    base: str
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class UseOrder:
    """The order in which the evaluation samples are scored from now on (``evaluation.order``), to be kept as well."""

    order: str


Broadcast = LoadStatistics | UseOrder | StageOpened | StageClosed


@dataclass(frozen=True)
class Request:
    """One piece of work for one worker.

    Attributes:
        id: Unique within the run; the same for every attempt.
        attempt: 1 for the first time that it is handed out.
        run: Identity of the run (epoch included), so that a late answer of another run is recognised.
        deadline_s: Seconds of work allowed before it is given up as a ``Failure`` of kind ``deadline``; ``None`` means
            no limit. Time in which the worker is held does not count. Kept where trials run in a child process.
    """

    id: int
    body: RequestBody
    attempt: int = 1
    run: str = ""
    deadline_s: float | None = None


# ------------------------------------------------------------------------------------------------- worker -> master


@dataclass(frozen=True)
class Inspection:
    """Answer to ``Inspect``.

    Attributes:
        capability: What the backend can do with this model.
        size_bytes: Bytes of the fp32 model as it would be exported.
        versions: Version of every library that decides about numbers, by distribution name.
        session_options: What every session of this run is created with.
        warnings: For the user.
        digest: SHA-256 of the model and the data as this worker sees them, for the resume signature.
        data: Facts of the evaluation set, e.g. ``samples`` and ``batch_size``; empty where there is none.
        model: Facts of the model, e.g. input names and shapes.
        judged_is_deployed: See ``backends.base.Backend``.
        fp32_in_shards: Several workers can score fp32 together (``Survey``), bit for bit as one would.
    """

    capability: Capability
    size_bytes: int
    versions: Mapping[str, str]
    session_options: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    digest: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    judged_is_deployed: bool = True
    fp32_in_shards: bool = False


@dataclass(frozen=True)
class Surveyed:
    """Answer to ``Survey``: one shard.

    Attributes:
        blob: What fp32 said of each sample (``evaluation.survey``).
        data: Identity of the evaluation data, all batches, as this worker read them.
        inputs, outputs: NaN and infinities by name, of those that hold any.
    """

    blob: bytes
    data: str = ""
    inputs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Accuracy:
    """Answer to ``Baseline`` and ``Judge``.

    Attributes:
        value: The accuracy that the criterion looks at; NaN where the evaluation ended early.
        low, high: Bounds of the exact value after an early verdict; equal to ``value`` after a full evaluation.
        metrics: Every metric by name; empty where the evaluation ended early.
        directions: Whether higher is better, by metric; said with the baseline only.
        samples: Samples evaluated.
        complete: The complete evaluation set was used.
        verdict: Whether the criterion is met, ``None`` where it was not asked, or (``ranking``) not found out.
        score: The accuracy as far as the decisive samples tell (``ranking``, ``survey``); else ``None``.
        order: With the baseline: the order of the samples that all trials are scored in (``UseOrder``); empty where
            they are scored as the data give them.
        decisive: With ``survey``: the samples that decide (``evaluation.ranking``); empty where there are none.
        size_bytes: Bytes of the model as exported, ``None`` for a baseline.
        quantize_s, evaluate_s, inference_s: Seconds spent rewriting the graph and building the session, in evaluation
            as a whole, and of that in inference alone (0 for a user's eval_func, where it cannot be told apart).
        compile_s: Seconds in which the model was compiled, no part of ``inference_s``.
        ops_executed_int8: Ops with weights that really run on integers, read from the optimised graph.
        warnings: For the user, e.g. what a recipe could not do.
    """

    value: float
    low: float
    high: float
    metrics: Mapping[str, float]
    samples: int
    complete: bool = True
    verdict: bool | None = None
    size_bytes: int | None = None
    quantize_s: float = 0.0
    evaluate_s: float = 0.0
    inference_s: float = 0.0
    ops_executed_int8: int | None = None
    warnings: tuple[str, ...] = ()
    directions: Mapping[str, bool] = field(default_factory=dict)
    score: float | None = None
    order: str = ""
    compile_s: float = 0.0
    decisive: str = ""


@dataclass(frozen=True)
class Statistics:
    """Answer to ``Calibrate``: one shard, as bytes that ``backends.statistics`` merges.

    Attributes:
        nonfinite: NaN and infinities in the data, by input, of those that hold any.
    """

    blob: bytes
    samples: int
    seconds: float
    nonfinite: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Latency:
    """Answer to ``MeasureLatency``: paired blocks of the candidate and fp32 in one process.

    Attributes:
        ratio: Median of the blocks' candidate-to-fp32 ratios; below 1 is faster.
        ci_low, ci_high: 95% confidence interval of the median.
        candidate_ms, baseline_ms: Median milliseconds of one run.
        blocks: Pairs that were timed.
        threads: Intra-op threads.
        noisy: The interval stayed wider than asked for when the block budget was spent.
        ratios: Every block's ratio, so that others can compute their own statistics.
        compile_s: Seconds in which the two models were compiled for it; no part of any latency.
    """

    ratio: float
    ci_low: float
    ci_high: float
    candidate_ms: float
    baseline_ms: float
    batch_size: int
    threads: int
    blocks: int
    host: str
    noisy: bool = False
    seconds: float = 0.0
    ratios: tuple[float, ...] = ()
    compile_s: float = 0.0


@dataclass(frozen=True)
class Footprint:
    """Answer to ``MeasureFootprint``: peak resident bytes of candidate and fp32, each in a fresh process."""

    candidate_bytes: int
    baseline_bytes: int


@dataclass(frozen=True)
class ProbeAnswer:
    """Answer to ``Probe`` and ``Diagnose``: a score by op name (group), or plain values in ``data`` for kinds that give
    other things."""

    scores: Mapping[str, float]
    data: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Exported:
    """Answer to ``Export``.

    Attributes:
        files: Content by file name, the model first, e.g. ``model.onnx``.
        deploy: What ``tuning_config.yaml`` must carry to export again without data (ranges, scales), plain values.
        ops_executed_int8: Ops with weights that really run on integers; ``None`` where it cannot be read.
        reasons: Why an op that is quantized in the config does not execute in int8, by op name.
    """

    files: Mapping[str, bytes]
    deploy: Mapping[str, Any]
    ops_executed_int8: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """The request could not be answered.

    Attributes:
        kind: ``error`` (raised in the backend), ``user_error`` (raised in the user's code), ``crash``, ``deadline``,
            ``memory`` (the child process died or was ended), ``lost`` (the rank is gone) or ``cancelled`` (the master
            asked for it).
        message: One sentence, with the rank and host where it happened.
        detail: Traceback or the tail of standard error.
        error: Class name of the exception, e.g. ``DataError``; empty where there was none.
        usage: The user's to mend (the exception was a ``UsageError``): where it ends the run, the exit code is 2.
        limit: What it was allowed and went over: seconds of a ``deadline``, resident bytes of a child's ``memory``.
    """

    kind: FailureKind
    message: str
    detail: str = ""
    error: str = ""
    usage: bool = False
    limit: float | None = None


ResultBody = Inspection | Surveyed | Accuracy | Statistics | Latency | Footprint | ProbeAnswer | Exported | Failure


@dataclass(frozen=True)
class Result:
    """The answer to one attempt of one request.

    Attributes:
        start_s, end_s: Seconds since the run began, on the master's clock (the agent shifts the child's times).
    """

    request_id: int
    attempt: int
    rank: int
    body: ResultBody
    run: str = ""
    start_s: float = 0.0
    end_s: float = 0.0
