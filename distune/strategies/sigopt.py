"""SigOpt: the official client, against a server or the in-memory service of sigoptlite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar

from distune import __version__
from distune.config.parameters import MEASURED
from distune.errors import DistuneError
from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.registry import strategy_registry
from distune.strategies.search_space import SearchSpace, Unseen
from distune.strategies.settings import switch
from distune.strategies.sigopt_service.experiment import Definition, Experiment, Suggestion
from distune.strategies.sigopt_service.settings import SETTINGS, ServiceSettings
from distune.strategies.stage import Candidate, Stage, StageResult, Trial

ACCURACY, LATENCY = "accuracy", "latency"

_NAME = 100
"""Characters that the service allows in a name."""


@strategy_registry
class SigOptTuneStrategy(TuneStrategy):
    """Asks SigOpt for assignments: accuracy is a constraint at the target, latency (relative to fp32) is minimised.

    The experiment has one categorical parameter for each group of ops; its budget is ``max_trials``.
    """

    tunes_parameters: ClassVar = True
    settings: ClassVar = {**SETTINGS, "fallback": "Whether fp32 is among the options of each op (default: false)."}

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        switch(kwargs, "fallback")
        ServiceSettings.of(kwargs)

    def next_tune_cfg(self) -> TuneGenerator:
        settings = ServiceSettings.of(self.context.kwargs)
        search = SearchSpace(self.space, switch(self.context.kwargs, "fallback"))
        if not search.parameters:
            self.context.tell("nothing to choose: every op has one option, which is judged")
            yield Stage("sigopt", [search.candidate(())], use="best")
            return
        coding = Coding(search)
        budget = self.record.remaining
        experiment = Experiment(
            settings,
            self._definition(coding, budget),
            self.context.seed,
            lambda key, work: self.context.outside(key, work),
        )
        try:
            experiment.open()
            yield from self._tune(settings, coding, experiment, budget)
            self._read_back(coding, experiment)
        finally:
            experiment.close()

    def _tune(self, settings: ServiceSettings, coding: Coding, experiment: Experiment, budget: int) -> TuneGenerator:
        """Suggestions in batches of ``parallel_bandwidth``, judged in parallel, until the budget is spent.

        The service may suggest what it suggested before: that is answered from the record, costs no trial, and counts
        in the service's own budget, so that it ends.
        """
        unseen = Unseen(coding.search)
        observed = 0
        for number in count(1):
            suggestions = [experiment.suggest() for _ in range(min(settings.parallel_bandwidth, budget - observed))]
            candidates = [coding.candidate(suggestion) for suggestion in suggestions]
            stage = [candidate for candidate in candidates if not candidate.config.is_fp32]
            result: StageResult = yield Stage(f"sigopt {number}", stage, use="best", latency="all")
            judged = {trial.config.hash: trial for trial in result.trials}
            for suggestion, candidate in zip(suggestions, candidates, strict=True):
                unseen.take(coding.point(suggestion))
                if candidate.config.is_fp32 and self.context.metrics:
                    experiment.observe(suggestion, None, {"reason": "the fp32 model is no trial"})
                elif candidate.config.is_fp32:
                    experiment.observe(suggestion, {ACCURACY: self.record.baseline, LATENCY: 1.0})
                elif candidate.config.hash in judged:
                    self._observe(experiment, suggestion, judged[candidate.config.hash])
            observed += len(suggestions)
            if result.finished:
                return
            if unseen.exhausted:
                self.context.tell("space exhausted: every tuning config was judged")
                return
            if observed >= budget:
                self.context.tell(
                    f"the experiment's budget of {budget} observations is spent, {self.record.remaining} of them on "
                    f"fp32 or on configs that were judged before"
                )
                return

    def _observe(self, experiment: Experiment, suggestion: Suggestion, trial: Trial) -> None:
        """Report a trial; one that failed, or whose latency could not be measured, is a failed observation."""
        found = self._measured(trial)
        values = {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
        metadata: dict[str, Any] = {"trial": trial.id, "config_hash": trial.config.hash, "verdict": trial.verdict}
        optional = {"size_bytes": trial.size_bytes, "host": trial.host, "reason": trial.reason[:_NAME]}
        metadata.update({key: value for key, value in optional.items() if value})
        experiment.observe(suggestion, values if len(values) == len(found) else None, metadata)

    def _measured(self, trial: Trial) -> dict[str, float | None]:
        """Value of each metric; ``None`` where it was not measured."""
        if not self.context.metrics:
            return {ACCURACY: trial.accuracy, LATENCY: self.context.score(trial)}
        own: dict[str, float | None] = {
            "latency": None if trial.latency is None else trial.latency.ratio,
            "size": trial.size_bytes,
            "footprint": trial.footprint_ratio,
        }
        return {
            metric.name: own[metric.name] if metric.name in MEASURED else trial.metrics.get(metric.name)
            for metric in self.context.metrics
        }

    def _read_back(self, coding: Coding, experiment: Experiment) -> None:
        """The service's own opinion of what was best, told and logged as a run of its project."""
        best = experiment.best()
        if not best:
            self.context.tell("sigopt: none of the observations meets the constraint")
            return
        assignments, values = best[0]["assignments"], best[0]["values"]
        config = coding.candidate(Suggestion("", assignments)).config
        trial = next((trial for trial in self.record.trials if trial.config.hash == config.hash), None)
        what = "fp32" if trial is None else f"trial {trial.id}"
        shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        self.context.tell(f"sigopt: best assignments are those of {what} ({shown})")
        model, dataset = self.context.facts.get("model", ""), self.context.facts.get("dataset")
        try:
            experiment.log_winner(f"{model} {what}".strip(), assignments, values, model, [dataset] if dataset else [])
        except DistuneError as error:  # the tuning itself is done
            self.context.tell(f"sigopt: {error}")

    def _definition(self, coding: Coding, budget: int) -> Definition:
        higher = self.context.criterion.higher_is_better
        metrics: list[dict[str, Any]] = [
            {
                "name": ACCURACY,
                "objective": "maximize" if higher else "minimize",
                "strategy": "constraint",
                "threshold": self.record.target,
            },
            {"name": LATENCY, "objective": "minimize", "strategy": "optimize"},
        ]
        if self.context.metrics:
            metrics = [metric.to_sigopt() for metric in self.context.metrics]
        metadata: dict[str, str | int | float] = {
            "distune": __version__,
            "fp32_accuracy": self.record.baseline,
            **self.context.facts,
        }
        return Definition(coding.parameters, metrics, budget, metadata)


class Coding:
    """The search space in the service's terms, and back: a categorical parameter a group, the user's own as they are.

    Names carry their number, so that those cut to the service's length stay distinct.
    """

    def __init__(self, search: SearchSpace) -> None:
        self.search = search
        self._values = [
            {_name(index, _label(choice)): index for index, choice in enumerate(parameter.choices)}
            if parameter.spec is None
            else {}
            for parameter in search.parameters
        ]
        self._names = [
            _name(index, parameter.name) if parameter.spec is None else parameter.spec.name
            for index, parameter in enumerate(search.parameters)
        ]

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """Bodies of the experiment's parameters."""
        return [
            {"name": name, "type": "categorical", "categorical_values": [{"name": value} for value in values]}
            if parameter.spec is None
            else parameter.spec.to_sigopt()
            for parameter, name, values in zip(self.search.parameters, self._names, self._values, strict=True)
        ]

    def point(self, suggestion: Suggestion) -> tuple[int, ...]:
        """Indices of the choices of a suggestion, the nearest ones where it lies between."""
        return tuple(
            values[str(suggestion.assignments[name])]
            if parameter.spec is None
            else parameter.spec.nearest(parameter.spec.from_sigopt(suggestion.assignments[name]))
            for parameter, name, values in zip(self.search.parameters, self._names, self._values, strict=True)
        )

    def candidate(self, suggestion: Suggestion) -> Candidate:
        """The tuning config of a suggestion, with the user's own parameters exactly as suggested."""
        found = self.search.candidate(self.point(suggestion))
        specs = self.search.space.parameters
        own = tuple(sorted((spec.name, spec.from_sigopt(suggestion.assignments[spec.name])) for spec in specs))
        return replace(found, config=replace(found.config, parameters=own))


def _name(index: int, text: str) -> str:
    return f"{index} {text}"[:_NAME]


def _label(choice: Any) -> str:
    """A choice in words: ``static uint8 asym per_tensor minmax, int8 sym per_channel minmax``."""
    if isinstance(choice, int):
        return f"{choice} samples"
    tensors = [
        f"{tensor.dtype} {tensor.scheme} {tensor.granularity} {tensor.algorithm}"
        for tensor in (choice.activation, choice.weight)
        if tensor is not None
    ]
    return f"{choice.mode} {', '.join(tensors)}".strip()
