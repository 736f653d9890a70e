"""The section ``tuning``: strategy, criterion, objectives and when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from distune.config.components import Trackers
from distune.config.diagnostics import describe, did_you_mean
from distune.config.faults import Context, Fault, FaultError, Section
from distune.config.parameters import MEASURED
from distune.config.schema_parameters import MetricSection, ParameterSection, check_names
from distune.config.values import (
    Absolute,
    Flag,
    ModuleReference,
    Names,
    Number,
    OutputPath,
    Relative,
    Text,
    Whole,
    checked,
    items,
    whole_numbers,
    words,
)
from distune.config.vocabulary import SIGOPT_KEYS, STRATEGIES
from distune.config.yaml_nodes import Empty, plain

OBJECTIVES = ("performance", "accuracy", "modelsize", "footprint")
NATURALLY_HIGHER = ("accuracy",)

ObjectiveWord = Literal["performance", "accuracy", "modelsize", "footprint"]


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FaultError.of(f"expected a strategy's settings as keys and values, got {describe(value)}")
    found: dict[str, Any] = plain(dict(value))
    return found


class Strategy(Section):
    """Which strategy proposes what is tried, and its settings."""

    name: Text = Field("basic", description="Name of the strategy.")
    module: ModuleReference = Field("", description="Module or file that defines a strategy of one's own.")
    strategy_kwargs: Annotated[dict[str, Any], checked(_settings)] = Field(
        default_factory=dict, description="Settings of the strategy."
    )
    sigopt_api_token: Text | None = Field(None, description="Token of the SigOpt service; else SIGOPT_API_TOKEN.")
    sigopt_project_id: Text | None = Field(None, description="Project of the SigOpt experiment.")
    sigopt_experiment_name: Text | None = Field(None, description="Name of the SigOpt experiment.")
    accuracy_weight: Number | None = Field(None, ge=0, description="Weight of accuracy in a sampler's objective.")
    latency_weight: Number | None = Field(None, ge=0, description="Weight of latency in a sampler's objective.")

    @classmethod
    def normalise(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) and data else data

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        name = data.get("name", "basic")
        if not isinstance(name, str):
            return
        known = context.known.strategies
        if known and name not in known and not data.get("module"):
            if name not in STRATEGIES:
                yield Fault(f"unknown strategy {name!r}{did_you_mean(name, {*known, *STRATEGIES})}", ("name",))
                return
            if context.complete:
                message = f"the strategy {name} is not available yet; available: {', '.join(sorted(known))}"
                yield Fault(message, ("name",))
                return
        parameters = known.get(name)
        kwargs = data.get("strategy_kwargs")
        if parameters is not None and isinstance(kwargs, Mapping):
            for key in kwargs:
                if key not in parameters:
                    hint = did_you_mean(str(key), parameters) or "; it has none"
                    yield Fault(f"the strategy {name} has no setting {key!r}{hint}", ("strategy_kwargs", key), "key")
        for key in SIGOPT_KEYS:
            if key in data and name != "sigopt":
                yield Fault(f"only the strategy sigopt takes this, and the strategy is {name}", (key,), "key")
            if isinstance(kwargs, Mapping) and key in data and key in kwargs:
                yield Fault("given here and in strategy_kwargs; keep one", (key,), "key")

    def kwargs(self) -> dict[str, Any]:
        """All settings of the strategy, whichever key they were given under."""
        named = {key: getattr(self, key) for key in (*SIGOPT_KEYS, "accuracy_weight", "latency_weight")}
        return {**{key: value for key, value in named.items() if value is not None}, **self.strategy_kwargs}


class AccuracyCriterion(Section):
    """The accuracy to keep."""

    relative: Relative | None = Field(
        None, description="Loss allowed as a share of the baseline: 0.01 or 1%, which it is if nothing is said."
    )
    absolute: Absolute | None = Field(None, description="Loss allowed in the metric's own unit.")
    higher_is_better: Flag = Field(True, description="Whether a higher value of the metric is better.")

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        if "relative" in data and "absolute" in data:
            yield Fault("'relative' and 'absolute' exclude each other; keep one", ("absolute",), "key")


def _numbers(value: Any) -> tuple[float, ...]:
    found: list[float] = []
    for item in items(value):
        try:
            number = -1.0 if isinstance(item, bool) else float(item)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 <= number < float("inf"):
            raise FaultError.of(f"expected weights: numbers of at least 0, got {describe(item)}", str(item))
        found.append(number)
    if not sum(found):
        raise FaultError.of("at least one weight must be above 0")
    return tuple(found)


def _flags(value: Any) -> tuple[bool, ...]:
    found: list[bool] = []
    for item in items(value):
        if isinstance(item, str) and item.casefold() in ("true", "false"):
            item = item.casefold() == "true"
        if not isinstance(item, bool):
            raise FaultError.of(f"expected true or false for each, got {describe(item)}", str(item))
        found.append(item)
    return tuple(found)


Weights = Annotated[tuple[float, ...], checked(_numbers)]
Flags = Annotated[tuple[bool, ...], checked(_flags)]


class MultiObjectives(Section):
    """Several objectives, weighted."""

    objective: Annotated[tuple[ObjectiveWord, ...], words("objective", OBJECTIVES)] = Field(
        description="The objectives."
    )
    weight: Weights | None = Field(None, description="One weight for each objective; equal ones by default.")
    higher_is_better: Flags | None = Field(None, description="One direction for each objective.")

    def check_values(self, context: Context) -> Iterator[Fault]:
        count = len(self.objective)
        if self.weight is not None and len(self.weight) != count:
            yield Fault(f"expected {count} weights, one for each objective, got {len(self.weight)}", ("weight",))
        if self.higher_is_better is None:
            return
        if len(self.higher_is_better) != count:
            message = f"expected {count} directions, one for each objective, got {len(self.higher_is_better)}"
            yield Fault(message, ("higher_is_better",))
            return
        for index, (name, higher) in enumerate(zip(self.objective, self.higher_is_better, strict=True)):
            if higher != (name in NATURALLY_HIGHER):
                natural = "higher" if name in NATURALLY_HIGHER else "lower"
                yield Fault(f"{natural} is better for {name}: it cannot be turned round", ("higher_is_better", index))


class ExitPolicySection(Section):
    """When to stop."""

    timeout: Number = Field(0.0, ge=0, description="Seconds in which to look on after success; 0 stops at the first.")
    max_trials: Whole = Field(100, ge=1, description="Trials at most.")
    performance_only: Flag = Field(False, description="Quantize once and do not judge accuracy.")


class Workspace(Section):
    """Where the run's files go."""

    path: OutputPath = Field("", description="Folder of the run; ./distune_workspace by default.")

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        return {"resume": "a run resumes by itself when its workspace holds a journal; name that folder in 'path'"}


class Diagnosis(Section):
    """Tensors of the chosen model beside fp32's: ranges, histograms, MSE, SQNR, saturation."""

    diagnosis_after_tuning: Flag = Field(False, description="Whether tensors are compared after tuning.")
    op_list: Names = Field((), description="Ops to look at; all by default.")
    iteration_list: Annotated[tuple[int, ...], whole_numbers("numbers of batches", 1)] = Field(
        (1,), description="Calibration batches to look at, counted from 1."
    )
    inspect_type: Literal["all", "activation", "weight"] = Field("activation", description="Which tensors to compare.")
    save_to_disk: Flag = Field(True, description="Whether diagnosis.json is written.")
    save_path: OutputPath = Field("", description="Folder of diagnosis.json; the workspace by default.")


class Latency(Section):
    """How latency is measured, in one place."""

    batch_size: Whole = Field(1, ge=1, description="Samples in the feed that is timed.")
    cores_per_instance: Whole = Field(1, ge=1, description="Threads of the timed sessions.")
    warmup: Whole = Field(5, ge=0, description="Runs before anything is timed.")
    iteration: Whole = Field(-1, ge=-1, description="Timed runs at most; -1 lets the confidence interval decide.")


class Limits(Section):
    """What one trial may take of a rank before it is ended and counts as failed; for trials in child processes."""

    deadline: Number | None = Field(
        None, gt=0, description="Seconds of work; by default 50 times what scoring fp32 took, and 300 at least."
    )
    memory: Number | None = Field(
        None, gt=0, description="MiB that its process may keep resident; by default the rank's share of its node."
    )


class Tuning(Section):
    """What is looked for, how, and for how long."""

    strategy: Strategy = Field(default_factory=lambda: Strategy.model_construct(), description="The strategy.")
    accuracy_criterion: AccuracyCriterion = Field(
        default_factory=lambda: AccuracyCriterion.model_construct(), description="The accuracy to keep."
    )
    objective: ObjectiveWord = Field("performance", description="What is best among the models that meet.")
    multi_objectives: MultiObjectives | None = Field(None, description="Several objectives, instead of one.")
    exit_policy: ExitPolicySection = Field(
        default_factory=lambda: ExitPolicySection.model_construct(), description="When to stop."
    )
    random_seed: Whole = Field(1978, ge=0, lt=2**32, description="Seed of everything random.")
    tensorboard: Flag = Field(
        False, description="Whether events for TensorBoard are written; the same as the tracker tensorboard."
    )
    trackers: Trackers = Field((), description="Who is told of the run: tensorboard, mlflow, or file.py:MyTracker.")
    workspace: Workspace = Field(
        default_factory=lambda: Workspace.model_construct(), description="Where the run's files go."
    )
    diagnosis: Diagnosis | None = Field(
        None, description="Which tensors of the chosen model are compared with fp32's at the end."
    )
    isolation: Literal["process", "none"] = Field("process", description="Where trials run.")
    limits: Limits = Field(
        default_factory=lambda: Limits.model_construct(), description="What one trial may take of a rank."
    )
    early_verdict: Flag = Field(
        True, description="Whether a trial ends as soon as the samples left cannot change its verdict."
    )
    ranking: Literal["full", "decisive"] = Field(
        "full", description="Which evaluation samples rank the ops: all, or those that the trials can flip."
    )
    shared_prefix: Number = Field(
        512.0,
        ge=0,
        description="MiB that a node may keep of what trials that change one op each compute alike; 0: none.",
    )
    search: Literal["section", "linear"] = Field(
        "section", description="How accumulated fallback finds its shortest prefix: by sections, or one by one."
    )
    search_width: Whole = Field(
        3, ge=1, description="Prefixes that a round of the search by sections asks, whatever the number of ranks."
    )
    refine_trials: Whole | None = Field(
        None, ge=0, description="Trials that give ops of the accepted model back to integers; 8, with an eval_func 0."
    )
    latency: Latency | None = Field(None, description="How latency is measured.")
    parameters: tuple[ParameterSection, ...] = Field((), description="Parameters of one's own, tuned beside the ops.")
    metrics: tuple[MetricSection, ...] = Field((), description="Metrics to optimize, to keep or to write down.")
    budget: Whole | None = Field(None, ge=1, description="Trials at most: another name of exit_policy.max_trials.")

    @classmethod
    def check_keys(cls, data: Mapping[str, Any], context: Context) -> Iterator[Fault]:
        if "objective" in data and "multi_objectives" in data:
            yield Fault("'objective' and 'multi_objectives' exclude each other; keep one", ("multi_objectives",), "key")
        yield from check_names(data.get("parameters"), "parameters")
        yield from check_names(data.get("metrics"), "metrics")
        policy = data.get("exit_policy")
        if "budget" in data and isinstance(policy, Mapping) and "max_trials" in policy:
            yield Fault("'budget' and 'exit_policy.max_trials' say the same; keep one", ("budget",), "key")
        given = [entry for entry in data.get("metrics") or () if isinstance(entry, Mapping | str)]
        roles = {"optimize" if isinstance(entry, str) else entry.get("strategy", "optimize") for entry in given}
        if "constraint" in roles and "accuracy_criterion" in data:
            message = "a constraint in 'metrics' and 'accuracy_criterion' say the same; keep one"
            yield Fault(message, ("accuracy_criterion",), "key")
        for key in ("objective", "multi_objectives"):
            if "optimize" in roles and key in data:
                yield Fault(f"a metric to optimize in 'metrics' and {key!r} say the same; keep one", (key,), "key")

    def check_values(self, context: Context) -> Iterator[Fault]:
        for index, metric in enumerate(self.metrics):
            if metric.name in MEASURED and metric.strategy == "constraint":
                yield Fault(f"{metric.name} can be optimized or stored, not constrained", ("metrics", index))
            elif metric.name in MEASURED and metric.strategy == "optimize" and metric.objective == "maximize":
                yield Fault(f"{metric.name} is to be minimized: add objective: minimize", ("metrics", index))
        endless = [parameter.name for parameter in self.parameters if not parameter.spec().is_grid]
        if endless and self.strategy.name == "exhaustive":
            index = [parameter.name for parameter in self.parameters].index(endless[0])
            yield Fault("exhaustive goes through a grid: give this parameter one", ("parameters", index))

    @classmethod
    def normalise(cls, data: Any) -> Any:
        # An empty section of 1.x says nothing: it is as if it were not written.
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if not (key in _OPTIONAL and isinstance(value, Empty))}


_OPTIONAL = ("multi_objectives", "diagnosis", "latency")
