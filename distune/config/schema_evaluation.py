"""The section ``evaluation``: how accuracy is judged and latency measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, InstanceOf

from distune.config.components import METRIC, Dataset, Metric, parse_many
from distune.config.diagnostics import describe
from distune.config.faults import Context, Fault, FaultError, Section
from distune.config.job import ComponentSpec
from distune.config.schema_data import NO_EFFECT, BatchSettings, Dataloader, Postprocess
from distune.config.schema_tuning import Flags, Weights
from distune.config.values import EvalFunc, Text, Whole, checked_in_context
from distune.config.yaml_nodes import Empty

_ONE_PROCESS = "a timed session runs alone, with cores_per_instance threads"
_JUDGED = "accuracy is judged with one thread per trial"


class AccuracyConfigs(Section):
    """Thread settings of 1.x; accuracy does not depend on them here."""

    cores_per_instance: Whole | None = Field(None, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: _JUDGED})
    num_of_instance: Whole | None = Field(None, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: _JUDGED})
    inter_num_of_threads: Whole | None = Field(None, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: _JUDGED})
    intra_num_of_threads: Whole | None = Field(None, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: _JUDGED})
    kmp_blocktime: Whole | None = Field(None, ge=0, description="1.x.", json_schema_extra={NO_EFFECT: _JUDGED})
    kmp_affinity: Text | None = Field(None, description="1.x.", json_schema_extra={NO_EFFECT: _JUDGED})


class PerformanceConfigs(Section):
    """Threads of the timed sessions."""

    cores_per_instance: Whole = Field(1, ge=1, description="Threads of the timed sessions.")
    num_of_instance: Whole = Field(1, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: _ONE_PROCESS})
    inter_num_of_threads: Whole | None = Field(
        None, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: _ONE_PROCESS}
    )
    intra_num_of_threads: Whole | None = Field(
        None, ge=1, description="1.x.", json_schema_extra={NO_EFFECT: _ONE_PROCESS}
    )
    kmp_blocktime: Whole | None = Field(None, ge=0, description="1.x.", json_schema_extra={NO_EFFECT: _ONE_PROCESS})
    kmp_affinity: Text | None = Field(None, description="1.x.", json_schema_extra={NO_EFFECT: _ONE_PROCESS})


class MultiMetrics(Section):
    """Several metrics. In the file they stand beside ``weight`` and ``higher_is_better``, by name."""

    metrics: tuple[InstanceOf[ComponentSpec], ...] = Field((), description="The metrics.")
    weight: Weights | None = Field(None, description="One weight for each metric; without, each must meet alone.")
    higher_is_better: Flags | None = Field(None, description="One direction for each metric.")

    def check_values(self, context: Context) -> Iterator[Fault]:
        count = len(self.metrics)
        if not count:
            yield Fault("no metric is named", (), "key")
        if self.weight is not None and len(self.weight) != count:
            yield Fault(f"expected {count} weights, one for each metric, got {len(self.weight)}", ("weight",))
        if self.higher_is_better is not None and len(self.higher_is_better) != count:
            message = f"expected {count} directions, one for each metric, got {len(self.higher_is_better)}"
            yield Fault(message, ("higher_is_better",))


def _multi_metrics(value: Any, context: Context) -> Any:
    if not isinstance(value, dict):
        raise FaultError.of(f"expected metrics as keys and values, got {describe(value)}")
    beside = {key: item for key, item in value.items() if key in ("weight", "higher_is_better")}
    named = {key: item for key, item in value.items() if key not in beside}
    # Parsed here and not by the field, so that a fault's place is the one in the file.
    return {**beside, "metrics": parse_many(METRIC, named, context)}


class Accuracy(Section):
    """How accuracy is judged: metrics on a dataloader, or a function of the user's own."""

    metric: Metric | None = Field(None, description="The metric.")
    multi_metrics: Annotated[MultiMetrics, checked_in_context(_multi_metrics)] | None = Field(
        None, description="Several metrics, instead of one."
    )
    eval_func: EvalFunc | None = Field(None, description="module:name or file.py:name that returns the accuracy.")
    configs: AccuracyConfigs | None = Field(None, description="Thread settings of 1.x.")
    iteration: Whole = Field(-1, ge=-1, description="Batches evaluated at most; -1 means all.")
    dataloader: Dataloader | None = Field(None, description="The evaluation data.")
    postprocess: Postprocess = Field(
        default_factory=lambda: Postprocess.model_construct(), description="What happens to the outputs first."
    )

    @classmethod
    def normalise(cls, data: Any) -> Any:
        return _without_empty(data, ("configs",))

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        ways = [key for key in ("metric", "multi_metrics", "eval_func") if key in data]
        for other in ways[1:]:
            yield Fault(f"'{ways[0]}' and '{other}' exclude each other; keep one", (other,), "key")
        if "eval_func" in data:
            for key in ("dataloader", "postprocess"):
                if key in data:
                    yield Fault("an eval_func brings its own data; take this out", (key,), "key")
        elif context.complete and ways and "dataloader" not in data:
            yield Fault(f"there is no data for it: add 'dataloader' beside '{ways[0]}'", (ways[0],), "key")
        elif context.complete and "dataloader" in data and not ways:
            yield Fault("nothing says how to score it: add 'metric' beside it", ("dataloader",), "key")


class PerformanceDataloader(BatchSettings):
    """The batch that is timed; its data are those of the evaluation."""

    dataset: Dataset | None = Field(
        None,
        description="1.x: data of the benchmark.",
        json_schema_extra={NO_EFFECT: "latency is measured on the evaluation or calibration data"},
    )
    batch_size: Whole = Field(1, ge=1, description="Samples in the feed that is timed.")


class Performance(Section):
    """How latency is measured."""

    warmup: Whole = Field(5, ge=0, description="Runs before anything is timed.")
    iteration: Whole = Field(-1, ge=-1, description="Timed runs at most; -1 lets the confidence interval decide.")
    configs: PerformanceConfigs = Field(
        default_factory=lambda: PerformanceConfigs.model_construct(), description="Threads of the timed sessions."
    )
    dataloader: PerformanceDataloader = Field(
        default_factory=lambda: PerformanceDataloader.model_construct(), description="The batch that is timed."
    )
    postprocess: Postprocess | None = Field(
        None,
        description="1.x.",
        json_schema_extra={NO_EFFECT: "only the model is timed"},
    )


class Evaluation(Section):
    """How a model is scored and timed."""

    accuracy: Accuracy | None = Field(None, description="How accuracy is judged.")
    performance: Performance | None = Field(None, description="How latency is measured.")

    @classmethod
    def normalise(cls, data: Any) -> Any:
        return _without_empty(data, ("accuracy", "performance"))


def _without_empty(data: Any, keys: tuple[str, ...]) -> Any:
    # An empty section of 1.x says nothing: it is as if it were not written.
    if not isinstance(data, dict):
        return data
    return {key: value for key, value in data.items() if not (key in keys and isinstance(value, Empty))}


__all__ = ["Accuracy", "Evaluation", "Performance"]
