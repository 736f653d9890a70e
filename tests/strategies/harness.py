"""Runs a strategy without workers: a synthetic model answers, and the real ``StageRun`` and ``TrialBook`` decide.

The model is additive: every quantized group costs some accuracy and saves some latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from distune.config.job import CriterionSpec, StrategySpec
from distune.engine.book import TrialBook
from distune.engine.stage_run import StageRun
from distune.evaluation.criterion import meets, target_accuracy
from distune.space.capability import ModeOptions, OpInfo, TensorOptions
from distune.space.op_config import FP32, OpConfig, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import Answer, StrategyContext, TuningFinished, Wanted
from distune.strategies.leading import settle_recipes
from distune.strategies.registry import strategy_class
from distune.strategies.stage import ProbeResult, ProbeStage, Stage, Trial
from distune.trial.messages import Latency

STATIC = ModeOptions(
    "static", TensorOptions(("uint8",), ("asym", "sym"), algorithms=("minmax", "kl")), TensorOptions(("int8",))
)
PLAIN = ModeOptions("static", TensorOptions(("uint8",)), TensorOptions(("int8",)))


def space(ops: Mapping[str, str], mode: ModeOptions = STATIC, **more: Any) -> TuningSpace:
    """A tuning space with one group an op. ``ops``: op type by op name."""
    options = (*mode.expand(), FP32)
    return TuningSpace(tuple(OpInfo(name, kind, options, name, True) for name, kind in ops.items()), **more)


def mixed_space(count: int = 6, mode: ModeOptions = STATIC, **more: Any) -> TuningSpace:
    """``count`` ops, conv and matmul in turns and an Add at the end."""
    kinds = [("MatMul", "Conv")[index % 2] for index in range(count - 1)] + ["Add"]
    return space({f"op{index}": kind for index, kind in enumerate(kinds)}, mode, **more)


@dataclass(frozen=True)
class AdditiveModel:
    """Accuracy is fp32's less what each quantized group costs.

    Attributes:
        cost: Accuracy that quantizing an op costs, by op name; ``default_cost`` for the others.
        option_cost: Cost of an option of an op beside that.
        higher_is_better: Otherwise the cost is added: the accuracy is a loss.
    """

    cost: Mapping[str, float] = field(default_factory=dict)
    default_cost: float = 0.0005
    option_cost: Callable[[OpConfig], float] = lambda option: 0.0
    baseline: float = 0.9
    higher_is_better: bool = True

    def error(self, config: TuningConfig) -> float:
        """Accuracy lost."""
        return sum(
            self.cost.get(name, self.default_cost) + self.option_cost(option)
            for name, option in config.ops
            if option.is_quantized
        )

    def accuracy(self, config: TuningConfig) -> float:
        """Accuracy of the model of ``config``."""
        return self.baseline - self.error(config) * (1 if self.higher_is_better else -1)

    def latency(self, config: TuningConfig) -> Latency:
        """An int8 op takes half the time of an fp32 one."""
        ratio = 1.0 - 0.5 * len(config.quantized_ops) / len(config.ops)
        return Latency(ratio, ratio, ratio, ratio, 1.0, 1, 1, 10, "host")

    def probe(self, stage: ProbeStage, space: TuningSpace) -> dict[str, float]:
        """What the ONNX backend's probes would say."""
        if stage.kind in ("op_mse", "hessian_trace"):
            return {g: sum(self.cost.get(op, self.default_cost) for op in space.groups[g]) for g in stage.ops}
        if stage.args["direction"] == "fallback":
            return {group: self.error(space.fallback(stage.config, [group])) for group in stage.ops}
        assert stage.quantized is not None
        quantized = stage.quantized.by_name
        return {
            group: self.error(stage.config.with_ops({name: quantized[name] for name in space.groups[group]}))
            for group in stage.ops
        }


@dataclass
class Played:
    """What came of a run."""

    book: TrialBook
    stages: list[Stage] = field(default_factory=list)
    probes: list[ProbeStage] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def trials(self) -> tuple[Trial, ...]:
        return self.book.trials

    @property
    def hashes(self) -> list[str]:
        return [trial.config.hash for trial in self.book.trials]

    @property
    def winner(self) -> Trial | None:
        """The fastest of those that meet, the earlier one among equals."""
        return min(self.book.met, key=lambda t: (t.latency.ratio if t.latency else 9.0, t.id), default=None)

    def quantized(self) -> set[str]:
        """Ops that are quantized in the winner."""
        assert self.winner is not None
        return set(self.winner.config.quantized_ops)


def play(
    strategy: str,
    space: TuningSpace,
    model: AdditiveModel,
    *,
    max_trials: int = 100,
    timeout: float = 0.0,
    seed: int = 1978,
    tolerance: float = 0.01,
    ahead: int = 1,
    accuracies: list[float] | None = None,
    outside: Callable[[str, Callable[[], Any]], Any] = lambda key, work: work(),
    **kwargs: Any,
) -> Played:
    """Run a strategy to its end, after the recipes that are settled before it.

    Args:
        timeout: 0 ends the run at the first success; above, the run goes on (no clock here ends it).
        ahead: Candidates judged ahead of the decisions, as several workers would; the decisions are the same.
        accuracies: Answers in the order of asking, in place of the model's.
        outside: Records what comes from outside the run.
    """
    criterion = CriterionSpec("relative", tolerance, model.higher_is_better)
    baseline = accuracies.pop(0) if accuracies else model.baseline
    book = TrialBook(max_trials, model.higher_is_better, baseline, target_accuracy(criterion, baseline))
    played = Played(book)
    finished = False

    def trial_of(config: TuningConfig, stage: str, label: str) -> Trial:
        played.asked.append(config.hash)
        accuracy = accuracies.pop(0) if accuracies else model.accuracy(config)
        met = meets(accuracy, book.target, model.higher_is_better)
        return Trial(0, stage, config, "met" if met else "not_met", label, accuracy, size_bytes=1)

    def judge(wanted: Wanted) -> Answer:
        nonlocal finished
        if finished:
            raise TuningFinished("over")
        if isinstance(wanted, ProbeStage):
            played.probes.append(wanted)
            return ProbeResult(model.probe(wanted, space))
        stage = wanted if isinstance(wanted, Stage) else Stage("trial", [wanted])
        played.stages.append(stage)
        run = StageRun(stage, book, not timeout)
        while not run.ended:
            # The last of those in flight arrives first.
            for candidate in reversed(run.want(ahead)):
                run.take(trial_of(candidate.config, stage.name, candidate.label))
            run.decide()
        for trial in run.result(False).trials:
            known = book.find(trial.config.hash)
            if (trial.met or stage.latency == "all") and known is not None:
                book.update(replace(known, latency=model.latency(trial.config)))
        result = run.result(False)
        finished = book.remaining == 0 or (not timeout and stage.ends_run and result.met is not None)
        return replace(result, finished=finished) if wanted is stage else result.trials[0]

    context = StrategyContext(
        book,
        criterion,
        kwargs,
        seed,
        stop_at_first=not timeout,
        judge=judge,
        tell=played.told.append,
        outside=outside,
    )
    cls = strategy_class(StrategySpec(strategy, kwargs))
    cls.check(kwargs, strategy)
    with suppress(TuningFinished):
        space = settle_recipes(space, judge, played.told.append)
        cls(space, context).traverse()
    return played
