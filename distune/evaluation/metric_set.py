"""The metrics of an evaluation: fed batch by batch, and made into one accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distune.config.job import EvaluationSpec
from distune.data.batch import Labels
from distune.data.transform import Postprocess
from distune.data.user_code import guard
from distune.errors import DataError, UsageError
from distune.evaluation.parts import build_metrics, metric_weights
from distune.evaluation.ranking import Margins
from distune.evaluation.survey import Survey
from distune.metrics.base import as_number
from distune.metrics.per_sample import Outcomes, OutcomeSum, PerSampleForm, form_of


class MetricSet:
    """All metrics of an evaluation, with the postprocessing before them.

    Args:
        spec: Which they are.
        outputs: Names of the model's outputs.
        higher_is_better: Direction of the accuracy, and so of a metric that says none.

    Attributes:
        forms: Per-sample forms, of those metrics that have one; none where metrics are asked for by name
            (``tuning.metrics``): those must be known of every trial.
        can_bound: Every metric has a per-sample form.
        directions: Whether higher is better, by name.

    Raises:
        DataError: A metric is unknown, metrics of different directions are to be averaged, or the direction of one is
            not known.
        UserCodeError: A metric of the user's raised.
    """

    def __init__(self, spec: EvaluationSpec, outputs: Sequence[str], higher_is_better: bool = True) -> None:
        self._outputs = tuple(outputs)
        self._names = spec.names
        self._postprocess = Postprocess(spec.postprocess)
        self._metrics = build_metrics(spec)
        self._weights = metric_weights(spec)
        self._reference: list[Any] | None = None
        self._last: tuple[Any, Any] = (None, None)
        self._outcomes: list[Outcomes] | None = None
        forms = [form_of(metric, name) for name, metric in self._metrics.items()]
        known = () if self._names else tuple(form for form in forms if form is not None)
        self.forms: tuple[PerSampleForm, ...] = known
        self.can_bound = bool(forms) and len(known) == len(forms)
        self._added = {form.name: OutcomeSum(form) for form in known if self.can_bound and not form.ours}
        self.directions: Mapping[str, bool] = self._directions(spec, higher_is_better)
        if self._weights is not None and len(set(self.directions.values())) > 1:
            raise DataError(
                f"metrics of different directions cannot be averaged: {self.directions} (name: higher is better); "
                "leave the weights out, and each must meet alone"
            )

    def _directions(self, spec: EvaluationSpec, higher_is_better: bool) -> dict[str, bool]:
        found: dict[str, bool] = {}
        each_alone = spec.each_must_meet and not spec.names
        for (name, metric), given in zip(self._metrics.items(), spec.metrics, strict=True):
            declared = metric.higher_is_better if given.higher_is_better is None else given.higher_is_better
            if declared is None and found and each_alone and not higher_is_better:
                # The criterion speaks of the first metric. To guess wrongly of another would accept any damage.
                raise DataError(
                    f"metric {name!r} does not say whether higher is better, and accuracy_criterion says that lower is "
                    "better of the first metric; give it higher_is_better, or all of them with "
                    "multi_metrics.higher_is_better"
                )
            found[name] = higher_is_better if declared is None else declared
        return found

    @property
    def needs_reference(self) -> bool:
        """True where a metric compares with the fp32 model's outputs (``compare_label: false``)."""
        return any(not metric.compare_label for metric in self._metrics.values())

    def set_reference(self, batches: Iterable[tuple[Sequence[Any], Labels]]) -> None:
        """Keep the fp32 model's outputs, batch by batch, as the labels of metrics with ``compare_label: false``."""
        self._reference = [self._postprocessed(raw, labels)[0] for raw, labels in batches]

    def reset(self) -> None:
        """Begin with another model.

        Raises:
            DataError: A metric compares with the fp32 model's outputs, and they were not given.
        """
        if self.needs_reference and self._reference is None:
            raise DataError("a metric has compare_label: false, but the fp32 model was not set as the reference")
        for metric in self._metrics.values():
            metric.reset()
        self._added = {name: OutcomeSum(added.form) for name, added in self._added.items()}

    def take(self, index: int, raw: Sequence[Any], labels: Labels) -> None:
        """The model's outputs for the batch number ``index`` of the user's own, and its labels."""
        self._last = outputs, labels = self._postprocessed(raw, labels)
        self._outcomes = None
        for name, metric in self._metrics.items():
            with guard(metric, f"metric {name!r}"):
                metric.update(outputs, labels if metric.compare_label else self._reference_of(index))
        if self._added:
            for form, found in zip(self.forms, self.outcomes(), strict=True):
                if form.name in self._added:
                    self._added[form.name].take(found)

    def outcomes(self) -> list[Outcomes]:
        """Outcomes of the batch that was taken last, by per-sample form."""
        if self._outcomes is None:
            self._outcomes = [form.read(*self._last) for form in self.forms]
        return self._outcomes

    def margins(self) -> list[Margins]:
        """Margins of the batch that was taken last, by per-sample form."""
        found = zip(self.forms, self.outcomes(), strict=True)
        return [form.margins(*self._last, samples=len(outcomes.values)) for form, outcomes in found]

    def survey(self) -> Survey:
        """An empty survey, to be fed with ``outcomes`` and ``margins``."""
        return Survey(self.forms, [self.directions[form.name] for form in self.forms])

    def results(self) -> dict[str, float]:
        """Every metric over all batches, by its own name.

        Raises:
            DataError: A metric of the user's gives something else than its outcomes make up.
        """
        found: dict[str, float] = {}
        for name, metric in self._metrics.items():
            with guard(metric, f"metric {name!r}"):
                found[name] = as_number(metric.result(), f"metric {name!r}: result()")
        return {**found, **{name: added.result(found[name]) for name, added in self._added.items()}}

    def combined(self, values: Sequence[float]) -> float:
        """The accuracy from the metrics' values, in their order: the first, or the mean by the weights."""
        return values[0] if self._weights is None else float(np.average(values, weights=self._weights))

    def _postprocessed(self, raw: Sequence[Any], labels: Labels) -> tuple[Any, Any]:
        if len(raw) != len(self._outputs):
            raise DataError(f"the model gave {len(raw)} outputs where it has {len(self._outputs)}: {self._outputs}")
        return self._postprocess((raw[0] if len(raw) == 1 else list(raw), labels))

    def _reference_of(self, index: int) -> Any:
        return None if self._reference is None else self._reference[index]


def by_names(
    names: Sequence[str], value: float | None, results: Mapping[str, float], what: str
) -> tuple[float, dict[str, float]]:
    """The accuracy and the metrics, by the names that ``tuning.metrics`` gives them.

    Where one metric is asked for and one number is there, that is it, whatever it is called.

    Args:
        value: The accuracy as it is without names.
        results: Metrics by their own names.
        what: Where they come from, for messages.

    Raises:
        UsageError: A name is not among the metrics.
    """
    found = dict(results)
    missing = [name for name in names if name not in found]
    if value is not None and missing and len(names) == 1 and len(found) <= 1:
        found[missing.pop()] = value
    if missing:
        given = ", ".join(sorted(found)) or "one number"
        raise UsageError(f"tuning.metrics asks for {', '.join(missing)}, and {what} gives {given}")
    return found[names[0]], found


__all__ = ["MetricSet", "by_names"]
