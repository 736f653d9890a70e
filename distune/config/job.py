"""``TuningJob``: all that a run needs to know, whichever road it came by (YAML or the Python classes).

Everything here is frozen and plain. User code is named (``module:name`` or ``/abs/file.py:name``) where the job came
from a YAML file, and held as a live object where it came from Python; live objects travel by cloudpickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distune.config.parameters import ParameterSpec, TuningMetric
from distune.config.secret import Secret

SECRET_SETTINGS = ("sigopt_api_token",)
"""Settings of strategies that must not be written anywhere."""

Approach = Literal["static", "dynamic", "auto", "weight_only", "qat"]
ObjectiveName = Literal["performance", "modelsize", "footprint", "accuracy", "metric"]


@dataclass(frozen=True)
class ComponentSpec:
    """A registered or user-written component and its arguments.

    Attributes:
        name: Name in the registry, else ``module:name`` or ``/absolute/file.py:name``.
        args: Keyword arguments of its constructor. Paths are absolute already.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataloaderSpec:
    """Where samples come from, how they are prepared, and how many make a batch.

    Attributes:
        last_batch: ``rollover`` keeps a shorter last batch, ``discard`` drops it.
    """

    dataset: ComponentSpec
    transforms: tuple[ComponentSpec, ...] = ()
    batch_size: int = 1
    last_batch: Literal["rollover", "discard"] = "rollover"
    shuffle: bool = False
    filter: ComponentSpec | None = None


Dataloader = DataloaderSpec | Iterable[Any]
"""A description of a dataloader, or a live one: an iterable of ``(input, label)`` with a ``batch_size``."""


@dataclass(frozen=True)
class ModelSpec:
    """The fp32 model.

    Attributes:
        framework: Name of the backend.
        path: Model file, or (PyTorch) ``file.py:builder``; empty where ``live`` holds the model.
        name: What the user calls it.
        quant_format: ``QDQ`` or ``QOperator`` (ONNX), ``default`` otherwise.
        inputs, outputs: Names the user gave; empty means the model's own.
        live: The model object itself where it was handed over in Python.
        weights: PyTorch: file of the weights that the builder's module gets; empty where it has them already.
        example_inputs: PyTorch: what the module is exported with: ``file.py:name`` of inputs or of a function that
            gives them, shapes and dtypes by input name, or live inputs; ``None`` takes a batch of the data.
        trust_pickle: PyTorch: the weights may be read by pickle, which runs code that the file holds.
        partition: PyTorch: ``none`` exports the module as a whole; ``auto`` its largest submodules that can be exported
            where ``torch.export`` refuses the whole.
        exclude: PyTorch: regular expressions of paths of submodules that stay eager; the rest is exported in parts.
        parts: PyTorch: which submodules were exported when a saved config was found, and with which inputs.
    """

    framework: str
    path: str = ""
    name: str = ""
    quant_format: str = "QDQ"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    live: Any = None
    weights: str = ""
    example_inputs: Any = None
    trust_pickle: bool = False
    partition: Literal["none", "auto"] = "none"
    exclude: tuple[str, ...] = ()
    parts: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Constraint:
    """One rule of the user about what may be tuned.

    Attributes:
        scope: ``model`` < ``optype`` < ``op``; the narrower one wins.
        pattern: Regular expression that must match the whole op type or op name; empty for ``model``.
        weight, activation: Allowed values by field name (``dtype``, ``scheme``, ``granularity``, ``algorithm``,
            ``bits``, ``group_size``). A ``dtype`` of ``fp32``, ``bf16`` or ``fp16`` allows that precision *beside*
            the quantized ones named with it.
        where: ``file:line:column`` of the rule, for messages; empty from Python.
    """

    scope: Literal["model", "optype", "op"]
    pattern: str = ""
    weight: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    activation: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class CalibrationSpec:
    """Samples that set the ranges of static quantization. ``sampling_sizes`` are tuned over, first one first."""

    dataloader: Dataloader | None = None
    sampling_sizes: tuple[int, ...] = (100,)


@dataclass(frozen=True)
class TrainSpec:
    """How quantization-aware training goes.

    Attributes:
        dataloader: Batches of ``(input, label)`` to train on; ``None`` where ``train_func`` brings its own.
        optimizer: Name in ``torch.optim`` with its arguments, else ``module:name`` of a function that gets the
            parameters.
        criterion: Name in ``torch.nn`` with its arguments, else ``module:name`` of a function or class; called with
            outputs and labels.
        postprocess: Transforms of ``(outputs, labels)`` before the criterion.
        start_epoch, end_epoch: Epochs are counted from the one up to the other, which is not trained.
        iteration: Batches of an epoch at most; -1 means all.
        train_func: ``module:name``, ``/abs/file.py:name`` or a live function that gets the prepared module and trains
            it, instead of all that.
    """

    dataloader: Dataloader | None = None
    optimizer: ComponentSpec = ComponentSpec("SGD", {"lr": 0.01})
    criterion: ComponentSpec = ComponentSpec("CrossEntropyLoss")
    postprocess: tuple[ComponentSpec, ...] = ()
    start_epoch: int = 0
    end_epoch: int = 1
    iteration: int = -1
    train_func: str | Callable[..., Any] | None = None


@dataclass(frozen=True)
class MetricSpec:
    """One metric of the evaluation.

    Attributes:
        metric: Registered name and arguments, or a live metric object with ``update``, ``result`` and ``reset``.
        weight: Its share of the accuracy when several are given; ``None`` means that every metric must meet alone.
        higher_is_better: Direction; ``None`` means the metric's own.
    """

    metric: ComponentSpec | Any
    weight: float | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class LatencySpec:
    """How latency is measured: the settings of ``evaluation.performance``.

    Attributes:
        batch_size: Samples in the feed that is timed.
        cores_per_instance: Intra-op threads of the timed sessions.
        warmup: Runs before anything is timed.
        iteration: Timed runs at most; -1 lets the interval decide.
    """

    batch_size: int = 1
    cores_per_instance: int = 1
    warmup: int = 5
    iteration: int = -1


@dataclass(frozen=True)
class EvaluationSpec:
    """How a model is scored; nothing given means that it is quantized once and not judged.

    Attributes:
        dataloader: Evaluation batches of ``(input, label)``.
        metrics: At least one where ``dataloader`` is used.
        postprocess: Transforms of the model's outputs before the metric.
        iteration: Batches evaluated at most; -1 means all.
        eval_func: ``module:name``, ``/abs/file.py:name`` or a live function: gets a callable model, returns a number.
        names: Metrics that ``tuning.metrics`` asks of the evaluation, the first of which is the accuracy; empty where
            there are none.
        performance: Latency settings.
    """

    dataloader: Dataloader | None = None
    metrics: tuple[MetricSpec, ...] = ()
    postprocess: tuple[ComponentSpec, ...] = ()
    iteration: int = -1
    eval_func: str | Callable[..., Any] | None = None
    names: tuple[str, ...] = ()
    performance: LatencySpec = LatencySpec()

    @property
    def can_judge(self) -> bool:
        """True where accuracy can be evaluated at all."""
        return self.eval_func is not None or (self.dataloader is not None and bool(self.metrics))

    @property
    def each_must_meet(self) -> bool:
        """True where several metrics are given without weights: a model meets where each of them does."""
        several = self.eval_func is None and len(self.metrics) > 1
        return several and all(metric.weight is None for metric in self.metrics)


@dataclass(frozen=True)
class CriterionSpec:
    """The accuracy to keep: ``tolerance * |baseline|`` may be lost (relative), or ``tolerance`` (absolute).

    ``threshold`` says what must be reached whatever fp32 reaches: ``tolerance`` is that value.
    """

    kind: Literal["relative", "absolute", "threshold"] = "relative"
    tolerance: float = 0.01
    higher_is_better: bool = True


@dataclass(frozen=True)
class ObjectiveSpec:
    """What is minimised among the trials that meet (``accuracy``: the loss), with its weight among several.

    Attributes:
        metric: Where ``name`` is ``metric``: which one of the evaluation's, maximised if ``higher_is_better``.
    """

    name: ObjectiveName = "performance"
    weight: float = 1.0
    metric: str = ""
    higher_is_better: bool = False


@dataclass(frozen=True)
class StrategySpec:
    """Strategy, its settings, and where a strategy of the user's own is defined.

    Tokens among the settings become ``Secret``: printing, journalling or sending the job does not give them away.
    """

    name: str = "basic"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""

    def __post_init__(self) -> None:
        hidden = {key: Secret.wrap(self.kwargs[key]) for key in SECRET_SETTINGS if self.kwargs.get(key) is not None}
        if hidden:
            object.__setattr__(self, "kwargs", {**self.kwargs, **hidden})


@dataclass(frozen=True)
class ExitPolicy:
    """When to stop: ``timeout`` 0 stops at the first success, above 0 it is the seconds in which to look further.

    ``performance_only`` quantizes once and does not judge accuracy.
    """

    timeout: float = 0.0
    max_trials: int = 100
    performance_only: bool = False


@dataclass(frozen=True)
class TrialLimits:
    """What one trial may take before it is ended.

    Attributes:
        deadline_s: Seconds of work; ``None``: a multiple of what scoring fp32 took.
        memory_bytes: Bytes that its process may keep resident; ``None``: the rank's share of its node, which workers
            find here.
    """

    deadline_s: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class DiagnosisSpec:
    """Which tensors of the chosen model are compared with fp32's after the run.

    Attributes:
        ops: Op names; empty means every op.
        batches: Numbers of calibration batches, from 1.
        tensors: Which of an op.
        folder: Where ``diagnosis.json`` goes; ``None`` where it is not written, empty for the workspace.
    """

    ops: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    tensors: Literal["all", "activation", "weight"] = "all"
    folder: str | None = ""


REFINE_TRIALS = 8
"""Trials of the minimality pass, where the user does not say."""


@dataclass(frozen=True)
class TuningJob:
    """One run of distune.

    Attributes:
        train: How a trial trains, where the approach is ``qat``.
        parameters: Parameters of the user's own that are tuned beside the ops; ``eval_func`` gets them by keyword.
        metrics: What ``tuning.metrics`` says; criterion, objectives and ``evaluation.names`` follow from it.
        recipes: Recipes that the user fixed, by name; the others may be tuned.
        excluded_precisions: ``bf16``, ``fp16``: what no op takes or falls back to.
        quant_level: ``auto``, 0 or 1.
        isolation: ``process`` runs trials in a child process of each rank, ``none`` in the rank itself.
        limits: Of a trial that runs in a child process.
        early_verdict: A trial may end as soon as the samples left cannot change its verdict; needs a metric with a
            per-sample form. Decisions are the same without.
        ranking: Whether ops are ranked by trials on the complete evaluation set, or on its decisive samples.
        shared_prefix_bytes: What a node may keep of what trials that change one op each compute alike; 0 turns it
            off. Decisions are the same without.
        search: How the shortest growing prefix of accumulated fallback is found: by sections, or one by one.
        search_width: Prefixes that a round of the search by sections asks.
        refine_trials: Trials of the minimality pass; ``None``: see ``refine_budget``.
        trackers: Who is told of the run (``report.tracking``).
        diagnosis: What is looked at after the run; ``None`` where nothing was asked for.
        workspace: Absolute folder of the run's files.
        source: The configuration file, for messages; empty from Python.
    """

    model: ModelSpec
    approach: Approach = "static"
    device: str = "cpu"
    calibration: CalibrationSpec = CalibrationSpec()
    train: TrainSpec | None = None
    constraints: tuple[Constraint, ...] = ()
    recipes: Mapping[str, Any] = field(default_factory=dict)
    excluded_precisions: tuple[str, ...] = ()
    quant_level: Literal["auto", 0, 1] = 1
    strategy: StrategySpec = StrategySpec()
    criterion: CriterionSpec = CriterionSpec()
    objectives: tuple[ObjectiveSpec, ...] = (ObjectiveSpec(),)
    exit_policy: ExitPolicy = ExitPolicy()
    parameters: tuple[ParameterSpec, ...] = ()
    metrics: tuple[TuningMetric, ...] = ()
    evaluation: EvaluationSpec = EvaluationSpec()
    seed: int = 1978
    isolation: Literal["process", "none"] = "process"
    limits: TrialLimits = TrialLimits()
    early_verdict: bool = True
    ranking: Literal["full", "decisive"] = "full"
    shared_prefix_bytes: int = 512 << 20
    search: Literal["section", "linear"] = "section"
    search_width: int = 3
    refine_trials: int | None = None
    trackers: tuple[ComponentSpec, ...] = ()
    diagnosis: DiagnosisSpec | None = None
    workspace: str = ""
    source: str = ""

    @property
    def refine_budget(self) -> int:
        """Trials of the minimality pass: those asked for, else as many as usual where a trial is distune's own.

        A user's ``eval_func`` may be slow or counted, and training is slow: there it must be asked for. Where neither
        speed nor size is an objective, there is nothing to gain.
        """
        if all(objective.name not in ("performance", "modelsize", "footprint") for objective in self.objectives):
            return 0
        if self.refine_trials is not None:
            return self.refine_trials
        return 0 if self.evaluation.eval_func is not None or self.approach == "qat" else REFINE_TRIALS

    @property
    def stops_at_first(self) -> bool:
        """The first success ends the run: no time to look further was given, and no metric to optimize."""
        return not self.exit_policy.timeout and all(metric.strategy != "optimize" for metric in self.metrics)
