"""What-if: which trial would win under another tolerance or objective, answered from the journal alone.

What a run did not judge or measure it cannot know, and the answer says so: trials whose early verdict left the accuracy
in an interval that the new target cuts, trials whose latency was never measured, and configs that a run with the other
setting might have gone on to try.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from distune.config.diagnostics import did_you_mean
from distune.config.job import CriterionSpec, ObjectiveName, ObjectiveSpec
from distune.engine.objective import Baseline, Choice, choose, score
from distune.errors import UsageError
from distune.evaluation.criterion import meets, target_accuracy
from distune.report import words
from distune.report.evidence import Evidence
from distune.report.result import LatencyFigures, TrialEntry
from distune.strategies.stage import Trial
from distune.trial.messages import Latency

_LISTED = 8
"""Trials that a sentence names at most."""


@dataclass(frozen=True)
class Question:
    """What is to be different from the run.

    Attributes:
        tolerance: The loss to allow, in the kind of the run's own criterion; ``None`` keeps the run's.
        objective: What is to be minimised; ``None`` keeps the run's.
    """

    tolerance: float | None = None
    objective: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the journal says to a question.

    Attributes:
        target: The accuracy that would be asked for.
        winner: Id of the trial that would win among those judged; ``None`` where none meets.
        tied: Trials that could not be told apart from it.
        first: The first trial that meets: where a run that stops at its first success would have ended.
        meeting: Trials that meet.
        undecided: Trials of which the journal cannot say whether they meet.
        unmeasured: Trials that meet, but of which the objective was not measured.
        sentences: The same in words, with what cannot be known.
    """

    target: float
    winner: int | None
    tied: tuple[int, ...]
    first: int | None
    meeting: tuple[int, ...]
    undecided: tuple[int, ...]
    unmeasured: tuple[int, ...]
    sentences: tuple[str, ...]


def ask(evidence: Evidence, question: Question) -> Answer:
    """Answer ``question`` from what the run judged and measured.

    Raises:
        UsageError: The run judged nothing, the tolerance is no allowed loss, or the objective is unknown.
    """
    result = evidence.result
    criterion, baseline = result.criterion, result.baseline
    if criterion is None or baseline is None or baseline.accuracy is None:
        raise UsageError(f"{evidence.path}: this run judged nothing, so there is nothing to ask of it")
    tolerance = criterion.tolerance if question.tolerance is None else question.tolerance
    if criterion.kind != "threshold" and not (0 <= tolerance < float("inf")):
        raise UsageError(f"--tolerance {tolerance}: the loss to allow is 0 or more")
    spec = CriterionSpec(criterion.kind, tolerance, criterion.higher_is_better)
    target = target_accuracy(spec, baseline.accuracy)
    candidates = [trial for trial in result.trials if not _is_fp32(evidence, trial)]
    meeting = [trial for trial in candidates if _surely(trial, target, spec.higher_is_better)]
    undecided = [trial for trial in candidates if trial not in meeting and _possibly(trial, target, spec)]
    objectives = _objectives(evidence, question)
    against = Baseline(baseline.accuracy, baseline.size_bytes or 1, spec.higher_is_better, _numbers(baseline.metrics))
    judged = [_as_trial(evidence, trial) for trial in meeting]
    unmeasured = tuple(trial.id for trial in judged if score(trial, objectives, against) is None)
    choice = choose(judged, objectives, against)
    found = Answer(
        target=target,
        winner=None if choice is None else choice.trial.id,
        tied=() if choice is None else choice.tied,
        first=meeting[0].id if meeting else None,
        meeting=tuple(trial.id for trial in meeting),
        undecided=tuple(trial.id for trial in undecided),
        unmeasured=unmeasured,
        sentences=(),
    )
    return replace(found, sentences=tuple(_sentences(evidence, found, choice, objectives)))


def _objectives(evidence: Evidence, question: Question) -> tuple[ObjectiveSpec, ...]:
    if question.objective is None:
        given = evidence.settings.get("objectives") or [{}]
        return tuple(ObjectiveSpec(**entry) for entry in given)
    known: dict[str, ObjectiveName] = {name: name for name in get_args(ObjectiveName) if name != "metric"}
    if question.objective not in known:
        raise UsageError(f"--objective {question.objective}: unknown{did_you_mean(question.objective, known)}")
    return (ObjectiveSpec(known[question.objective]),)


def _surely(trial: TrialEntry, target: float, higher: bool) -> bool:
    worst = trial.accuracy_low if higher else trial.accuracy_high
    return worst is not None and meets(worst, target, higher)


def _possibly(trial: TrialEntry, target: float, spec: CriterionSpec) -> bool:
    best = trial.accuracy_high if spec.higher_is_better else trial.accuracy_low
    return best is not None and meets(best, target, spec.higher_is_better)


def _is_fp32(evidence: Evidence, trial: TrialEntry) -> bool:
    config = evidence.configs.get(trial.id)
    return config is not None and config.is_fp32


def _as_trial(evidence: Evidence, trial: TrialEntry) -> Trial:
    """The trial as the engine compares it."""
    return Trial(
        id=trial.id,
        stage=trial.stage,
        config=evidence.configs[trial.id],
        verdict="met",
        accuracy=trial.accuracy,
        metrics=_numbers(trial.metrics),
        latency=_latency(trial.latency),
        size_bytes=trial.size_bytes,
    )


def _latency(figures: LatencyFigures | None) -> Latency | None:
    if figures is None or figures.ratio is None or figures.ci_low is None or figures.ci_high is None:
        return None
    return Latency(
        figures.ratio,
        figures.ci_low,
        figures.ci_high,
        figures.candidate_ms or 0.0,
        figures.baseline_ms or 0.0,
        figures.batch_size,
        figures.threads,
        0,
        figures.host,
    )


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}


def _sentences(
    evidence: Evidence, answer: Answer, choice: Choice | None, objectives: Sequence[ObjectiveSpec]
) -> list[str]:
    names = " and ".join(objective.name for objective in objectives)
    entries = {trial.id: trial for trial in evidence.result.trials}
    lines = [f"the target would be {words.accuracy(answer.target)}"]
    if choice is None:
        lines.append(f"none of the {words.counted(len(entries), 'judged trial')} surely meets it")
    else:
        trial = entries[choice.trial.id]
        label = f" ({trial.label})" if trial.label else ""
        lines.append(
            f"{words.counted(len(answer.meeting), 'trial')} would meet it; by {names} trial {trial.id}{label} would "
            f"win: accuracy {words.accuracy(trial.accuracy)}, {words.size(trial.size_bytes)}, "
            f"{words.speed(trial.latency)}"
        )
        if len(answer.tied) > 1:
            lines.append(f"it cannot be told apart from {_list(i for i in answer.tied if i != answer.winner)}")
        if answer.first != answer.winner:
            lines.append(f"a run that stops at its first success would have ended with trial {answer.first}")
    if answer.undecided:
        lines.append(f"the journal cannot know of {_list(answer.undecided)}: judged only as far as the verdict needed")
    if answer.unmeasured and len(answer.unmeasured) < len(answer.meeting):
        lines.append(f"{_list(answer.unmeasured)} would meet it too, but {names} was not measured there")
    elif answer.unmeasured:
        lines.append(f"{names} was measured of none of those that meet, so the smallest file decides")
    if not evidence.ended:
        lines.append("the run did not come to its end: trials may be missing")
    lines.append("a run with this setting might go on to configs that this one never judged")
    return lines


def _list(ids: Iterable[int]) -> str:
    numbers = list(ids)
    shown = ", ".join(map(str, numbers[:_LISTED]))
    more = f" and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else ""
    return f"trial{'' if len(numbers) == 1 else 's'} {shown}{more}"


__all__ = ["Answer", "Question", "ask"]
