"""From a valid configuration to the job that is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

from distune.config.job import (
    Approach,
    CalibrationSpec,
    ComponentSpec,
    Constraint,
    CriterionSpec,
    DataloaderSpec,
    DiagnosisSpec,
    EvaluationSpec,
    ExitPolicy,
    LatencySpec,
    MetricSpec,
    ModelSpec,
    ObjectiveName,
    ObjectiveSpec,
    StrategySpec,
    TrainSpec,
    TrialLimits,
    TuningJob,
)
from distune.config.parameters import MEASURED
from distune.config.schema import Configuration, Model, framework_of
from distune.config.schema_data import Dataloader
from distune.config.schema_evaluation import Accuracy, Evaluation
from distune.config.schema_quantization import Calibration, Quantization, Rule
from distune.config.schema_train import Train
from distune.config.schema_tuning import Diagnosis, Latency, Limits, Tuning
from distune.config.vocabulary import DYNAMIC_FRAMEWORK, FRAMEWORKS
from distune.config.yaml_nodes import KeyPath

Where = Callable[[KeyPath], str]
"""``file:line:column`` of a key path."""


def to_job(configuration: Configuration, model: Model, where: Where, source: str, workspace: str) -> TuningJob:
    """The job of a complete configuration.

    Args:
        configuration: Valid, with every path absolute.
        model: Its ``model`` section.
        where: Positions of the file, for the rules' messages.
        source: The file, for messages.
        workspace: Absolute folder of the run.
    """
    quantization, tuning = configuration.quantization, configuration.tuning
    dynamic = model.framework == DYNAMIC_FRAMEWORK
    strategy = tuning.strategy
    policy = tuning.exit_policy
    return TuningJob(
        model=_model(model),
        approach="dynamic" if dynamic else cast(Approach, quantization.approach),
        device=configuration.device,
        calibration=_calibration(quantization.calibration, trained=quantization.approach == "qat"),
        train=_train(quantization.train),
        constraints=tuple(_constraints(quantization, where)),
        recipes=quantization.recipes,
        excluded_precisions=quantization.excluded_precisions,
        quant_level=cast(Literal["auto", 0, 1], quantization.quant_level),
        strategy=StrategySpec(strategy.name, strategy.kwargs(), strategy.module),
        criterion=_criterion(tuning),
        parameters=tuple(parameter.spec() for parameter in tuning.parameters),
        metrics=tuple(metric.spec() for metric in tuning.metrics),
        objectives=_objectives(tuning),
        exit_policy=ExitPolicy(policy.timeout, tuning.budget or policy.max_trials, policy.performance_only),
        evaluation=_evaluation(configuration.evaluation, tuning),
        seed=tuning.random_seed,
        isolation=tuning.isolation,
        early_verdict=tuning.early_verdict,
        ranking=tuning.ranking,
        shared_prefix_bytes=int(tuning.shared_prefix * 2**20),
        search=tuning.search,
        search_width=tuning.search_width,
        refine_trials=tuning.refine_trials,
        limits=_limits(tuning.limits),
        trackers=_trackers(tuning),
        diagnosis=_diagnosis(tuning.diagnosis),
        workspace=workspace,
        source=source,
    )


def _trackers(tuning: Tuning) -> tuple[ComponentSpec, ...]:
    asked = tuning.tensorboard and not any(spec.name == "tensorboard" for spec in tuning.trackers)
    return (*tuning.trackers, *([ComponentSpec("tensorboard")] if asked else []))


def _diagnosis(diagnosis: Diagnosis | None) -> DiagnosisSpec | None:
    if diagnosis is None or not diagnosis.diagnosis_after_tuning:
        return None
    folder = diagnosis.save_path if diagnosis.save_to_disk else None
    return DiagnosisSpec(diagnosis.op_list, diagnosis.iteration_list, diagnosis.inspect_type, folder)


def _limits(limits: Limits) -> TrialLimits:
    return TrialLimits(limits.deadline, None if limits.memory is None else int(limits.memory * 2**20))


def _model(model: Model) -> ModelSpec:
    written = framework_of(model.path) if model.framework == "NA" else model.framework
    framework, quant_format = FRAMEWORKS[written]
    return ModelSpec(
        framework,
        model.path,
        model.name,
        quant_format,
        model.inputs,
        model.outputs,
        weights=model.weights,
        example_inputs=model.example_inputs,
        trust_pickle=model.trust_pickle,
        partition=model.partition,
        exclude=model.exclude,
    )


def _dataloader(dataloader: Dataloader) -> DataloaderSpec:
    return DataloaderSpec(
        dataset=dataloader.dataset,
        transforms=dataloader.transform,
        batch_size=dataloader.batch_size,
        last_batch=dataloader.last_batch,
        shuffle=dataloader.shuffle,
        filter=dataloader.filter,
    )


def _train(train: Train | None) -> TrainSpec | None:
    if train is None:
        return None
    given = TrainSpec()
    return TrainSpec(
        dataloader=_dataloader(train.dataloader) if train.dataloader is not None else None,
        optimizer=train.optimizer or given.optimizer,
        criterion=train.criterion,
        postprocess=train.postprocess.transform,
        start_epoch=train.start_epoch,
        end_epoch=train.epochs,
        iteration=train.iteration,
        train_func=train.train_func,
    )


def _calibration(calibration: Calibration, trained: bool) -> CalibrationSpec:
    loader = _dataloader(calibration.dataloader) if calibration.dataloader is not None else None
    if trained and loader is None:
        return CalibrationSpec(None, (0,))  # ranges are learned in training
    if calibration.iterations is None:
        return CalibrationSpec(loader, calibration.sampling_size)
    batch = loader.batch_size if loader is not None else 1
    return CalibrationSpec(loader, tuple(batches * batch for batches in calibration.iterations))


def _constraints(quantization: Quantization, where: Where) -> Iterator[Constraint]:
    scopes: tuple[tuple[Literal["model", "optype", "op"], str, dict[str, Rule]], ...] = (
        ("model", "model_wise", {"": quantization.model_wise}),
        ("optype", "optype_wise", dict(quantization.optype_wise)),
        ("op", "op_wise", dict(quantization.op_wise)),
    )
    for scope, key, rules in scopes:
        for pattern, rule in rules.items():
            weight, activation = _allowed(rule.weight), _allowed(rule.activation)
            if weight or activation:
                path: KeyPath = ("quantization", key, pattern) if pattern else ("quantization", key)
                yield Constraint(scope, pattern, weight, activation, where(path))


_RULE_FIELDS = ("dtype", "scheme", "granularity", "algorithm", "bits", "group_size")


def _allowed(rule: Any) -> dict[str, tuple[Any, ...]]:
    given = {name: getattr(rule, name, None) for name in _RULE_FIELDS}
    return {name: values for name, values in given.items() if values is not None}


def _criterion(tuning: Tuning) -> CriterionSpec:
    constraint = next((metric for metric in tuning.metrics if metric.strategy == "constraint"), None)
    if constraint is not None and constraint.threshold is not None:
        return CriterionSpec("threshold", constraint.threshold, constraint.objective == "maximize")
    criterion = tuning.accuracy_criterion
    if criterion.absolute is not None:
        return CriterionSpec("absolute", criterion.absolute, criterion.higher_is_better)
    tolerance = 0.01 if criterion.relative is None else criterion.relative
    return CriterionSpec("relative", tolerance, criterion.higher_is_better)


def _objectives(tuning: Tuning) -> tuple[ObjectiveSpec, ...]:
    optimized = [metric.spec() for metric in tuning.metrics if metric.strategy == "optimize"]
    if optimized:
        return tuple(
            ObjectiveSpec(cast(ObjectiveName, MEASURED[metric.name]))
            if metric.name in MEASURED
            else ObjectiveSpec("metric", metric=metric.name, higher_is_better=metric.higher_is_better)
            for metric in optimized
        )
    several = tuning.multi_objectives
    if several is None:
        return (ObjectiveSpec(tuning.objective),)
    weights = several.weight or (1.0,) * len(several.objective)
    return tuple(ObjectiveSpec(name, weight) for name, weight in zip(several.objective, weights, strict=True))


def _evaluation(evaluation: Evaluation, tuning: Tuning) -> EvaluationSpec:
    accuracy = evaluation.accuracy or Accuracy.model_construct()
    return EvaluationSpec(
        dataloader=_dataloader(accuracy.dataloader) if accuracy.dataloader is not None else None,
        metrics=_metrics(accuracy),
        postprocess=accuracy.postprocess.transform,
        iteration=accuracy.iteration,
        eval_func=accuracy.eval_func,
        names=_names(tuning),
        performance=_latency(evaluation, tuning.latency),
    )


def _names(tuning: Tuning) -> tuple[str, ...]:
    """Metrics that the evaluation must give; first the one that the criterion looks at."""
    asked = [metric for metric in tuning.metrics if metric.name not in MEASURED]
    roles = {"constraint": 0, "optimize": 1, "store": 2}
    return tuple(metric.name for metric in sorted(asked, key=lambda metric: roles[metric.strategy]))


def _metrics(accuracy: Accuracy) -> tuple[MetricSpec, ...]:
    if accuracy.metric is not None:
        return (MetricSpec(accuracy.metric),)
    several = accuracy.multi_metrics
    if several is None:
        return ()
    weights = several.weight or (None,) * len(several.metrics)
    directions = several.higher_is_better or (None,) * len(several.metrics)
    return tuple(
        MetricSpec(metric, weight, higher)
        for metric, weight, higher in zip(several.metrics, weights, directions, strict=True)
    )


def _latency(evaluation: Evaluation, latency: Latency | None) -> LatencySpec:
    if latency is not None:
        return LatencySpec(latency.batch_size, latency.cores_per_instance, latency.warmup, latency.iteration)
    timed = evaluation.performance
    if timed is None:
        return LatencySpec()
    return LatencySpec(timed.dataloader.batch_size, timed.configs.cores_per_instance, timed.warmup, timed.iteration)
