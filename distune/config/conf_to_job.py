"""From the Python classes and the live objects of ``fit`` to the job that is run.

The road is that of a YAML file: the document of the classes is validated by the schema and made a job by ``to_job``;
only what lives in Python (model, dataloaders, functions, metrics) is put in afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from distune.config.conf import MixedPrecisionConfig, PostTrainingQuantConfig, QuantizationAwareTrainingConfig
from distune.config.conf_check import checked_document, plain
from distune.config.diagnostics import describe
from distune.config.job import (
    ComponentSpec,
    DiagnosisSpec,
    MetricSpec,
    ModelSpec,
    TrainSpec,
    TuningJob,
)
from distune.config.known import KnownNames
from distune.config.schema import Model
from distune.config.to_job import to_job
from distune.errors import UsageError


@dataclass(frozen=True)
class Live:
    """What ``fit`` was given beside the config.

    Attributes:
        calib_dataloader, eval_dataloader: Iterables of ``(input, label)`` batches, with or without ``batch_size``.
        eval_func: Gets a callable model, returns a number.
        eval_metric: See ``metric_document``; or live metrics.
        train_func: Gets the prepared module and trains it.
    """

    calib_dataloader: Iterable[Any] | None = None
    eval_func: Callable[..., Any] | None = None
    eval_dataloader: Iterable[Any] | None = None
    eval_metric: Any = None
    train_func: Callable[..., Any] | None = None


def job_of(
    conf: PostTrainingQuantConfig | QuantizationAwareTrainingConfig | MixedPrecisionConfig,
    model: ModelSpec,
    live: Live = Live(),
    *,
    seed: int = 1978,
    workspace: str = "",
    isolation: Literal["process", "none"] = "process",
    known: KnownNames | None = None,
    tensorboard: bool = False,
) -> TuningJob:
    """The job of a config and live objects.

    Args:
        conf: The config.
        model: The fp32 model; ``quant_format`` and names of inputs and outputs come from the config.
        live: Everything else that ``fit`` was given.
        workspace: Absolute folder of the run.
        known: Registered names to check strategy and metrics against.
        tensorboard: Write events for TensorBoard.

    Raises:
        UsageError: Every problem of the config, or that things given exclude each other.
    """
    document = conf.document()
    metrics = _live_metrics(live.eval_metric)
    if live.eval_metric is not None and not metrics:
        document["evaluation"] = {"accuracy": metric_document(live.eval_metric)}
    names = {
        **conf.names(),
        ("evaluation", "accuracy"): "eval_metric",
        ("evaluation", "accuracy", "metric"): "eval_metric",
        ("evaluation", "accuracy", "multi_metrics"): "eval_metric",
    }
    configuration = checked_document(document, names, known)
    extras = conf.checked_extras()
    section = Model.model_construct(framework=model.framework, path=model.path, name=model.name)
    job = to_job(configuration, section, lambda place: "", "", workspace)
    static = isinstance(conf, PostTrainingQuantConfig) and job.approach == "static"
    _check_together(live, static)
    evaluation = replace(
        job.evaluation,
        # A function brings its own data: what stands beside it is of no use to the run.
        dataloader=None if live.eval_func is not None else live.eval_dataloader,
        metrics=() if live.eval_func is not None else metrics or job.evaluation.metrics,
        eval_func=live.eval_func,
    )
    return replace(
        job,
        model=replace(
            model,
            quant_format=_quant_format(extras, model),
            inputs=extras.inputs,
            outputs=extras.outputs,
        ),
        calibration=replace(job.calibration, dataloader=live.calib_dataloader),
        train=None if live.train_func is None else TrainSpec(train_func=live.train_func),
        evaluation=evaluation,
        seed=seed,
        isolation=isolation,
        trackers=(ComponentSpec("tensorboard"),) if tensorboard else (),
        diagnosis=DiagnosisSpec() if getattr(extras, "diagnosis", False) else None,
    )


def _quant_format(extras: Any, model: ModelSpec) -> str:
    if getattr(extras, "quant_format", "default") == "QOperator":
        message = (
            "PostTrainingQuantConfig.quant_format has no effect: models are written in QDQ form, of which ONNX Runtime "
            "makes the same integer kernels when it loads them"
        )
        warnings.warn(message, UserWarning, stacklevel=5)
    return "QDQ" if model.framework == "onnxruntime" else "default"


def metric_document(eval_metric: Any) -> dict[str, Any]:
    """The section ``evaluation.accuracy`` for metrics given by name.

    Args:
        eval_metric: A name; ``{"topk": 1}``; ``{"MSE": {"compare_label": False}}``; or several, as
            ``{"multi_metrics": {"Accuracy": {}, "MSE": {}, "weight": [0.5, 0.5], "higher_is_better": [...]}}`` with or
            without the outer key.

    Raises:
        UsageError: It is nothing of the kind.
    """
    value = plain(eval_metric)
    if isinstance(value, str) and value:
        return {"metric": value}
    if not isinstance(value, dict) or not value:
        raise UsageError(
            f"eval_metric: expected a metric (its name, 'Name: argument' in a dict, or an object with update, reset "
            f"and result), got {describe(value)}"
        )
    several = set(value) == {"multi_metrics"}
    inner = value["multi_metrics"] if several else value
    if isinstance(inner, dict):
        inner = {name: {} if args is None else args for name, args in inner.items()}
        inner = {name: args for name, args in inner.items() if name not in _SHARED or args != {}}
    return {"multi_metrics" if several or len(inner) > 1 else "metric": inner}


_SHARED = ("weight", "higher_is_better")


def _live_metrics(eval_metric: Any) -> tuple[MetricSpec, ...]:
    """Live metrics; empty where they are given by name."""
    if eval_metric is None or isinstance(eval_metric, str | Mapping):
        return ()
    if isinstance(eval_metric, list | tuple):
        return tuple(MetricSpec(metric) for metric in eval_metric)
    return (MetricSpec(eval_metric),)


def _check_together(live: Live, static: bool) -> None:
    if static and live.calib_dataloader is None:
        raise UsageError(
            "static quantization needs calib_dataloader: batches of (input, label) whose ranges are those of real use; "
            "or take approach='dynamic'"
        )
    if live.eval_func is not None and not callable(live.eval_func):
        raise UsageError(
            f"eval_func is a {type(live.eval_func).__name__}, which cannot be called; give a function that takes a "
            "model and returns a number"
        )
    if live.eval_func is None and live.eval_metric is not None and live.eval_dataloader is None:
        raise UsageError("eval_metric needs data: give eval_dataloader as well")
