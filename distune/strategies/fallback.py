"""Fallback to floating point: block by block and group by group, each accumulated in impact order.

Basic and its relatives share these stages; what differs between them is how the order of the groups is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from distune.evaluation.criterion import best_first
from distune.space.op_config import Mode, TuningConfig
from distune.space.tuning_space import TuningSpace
from distune.strategies.base import TuneGenerator
from distune.strategies.prefix_search import Search, section_search
from distune.strategies.stage import Candidate, ProbeStage, Stage, StageResult, Trial

SECTION = Search()


def instance_stage(
    space: TuningSpace, base: TuningConfig, groups: Sequence[str], precision: Mode, reserve: int = 0
) -> Stage:
    """One candidate a group: ``base`` with that group alone in ``precision``.

    Args:
        groups: Groups to try, in the order in which they are tried.
        reserve: Trials to leave for the accumulated stage.
    """
    return Stage(
        name=f"instance-wise fallback to {precision}",
        candidates=[Candidate(space.fallback(base, [group], precision), group) for group in groups],
        exit="first",
        use="rank",
        accuracy="ranking",
        latency="meeting",
        reserve=reserve,
        base=base,
    )


def block_stage(space: TuningSpace, base: TuningConfig, precision: Mode, reserve: int = 0) -> Stage:
    """One candidate a detected block: ``base`` with all groups of the block in ``precision``.

    Args:
        reserve: Trials to leave for later stages.
    """
    quantized = set(space.quantized_groups(base, precision))
    candidates = [
        Candidate(space.fallback(base, wanted, precision), f"block {index}")
        for index, block in enumerate(space.blocks)
        if (wanted := [group for group in block if group in quantized])
    ]
    return Stage(
        name=f"block-wise fallback to {precision}",
        candidates=candidates,
        exit="first",
        use="rank",
        accuracy="exact",
        reserve=reserve,
        base=base,
    )


def accumulated_block_stage(
    space: TuningSpace,
    base: TuningConfig,
    blocks: Stage,
    result: StageResult,
    precision: Mode,
    higher_is_better: bool,
    reserve: int = 0,
) -> Stage:
    """Growing prefixes of the detected blocks in ``precision``, the block whose fallback helped most first.

    Args:
        blocks: The stage of ``block_stage``.
        result: Its answer.
        reserve: Trials to leave for later stages.
    """
    quantized = space.quantized_groups(base, precision)
    labels = [f"block {index}" for index in range(len(space.blocks))]
    tried = {candidate.label for candidate in blocks.candidates if isinstance(candidate, Candidate)}
    order = impact_order(result, [label for label in labels if label in tried], higher_is_better)
    groups: set[str] = set()
    candidates = []
    for length, label in enumerate(order, 1):
        groups.update(space.blocks[labels.index(label)])
        chosen = [group for group in quantized if group in groups]
        if length > 1 and len(chosen) < len(quantized):  # one block was tried; all that is quantized would be fp32
            candidates.append(Candidate(space.fallback(base, chosen, precision), f"{length} of {len(order)} blocks"))
    name = f"accumulated block fallback to {precision}"
    return Stage(name, candidates, exit="first", use="prefix", accuracy="verdict", reserve=reserve, order=order)


def impact_order(result: StageResult, groups: Sequence[str], higher_is_better: bool) -> tuple[str, ...]:
    """Groups by what their fallback gained, the most helpful first.

    A group whose trial failed or was not judged comes last. Groups of equal accuracy keep the order of ``groups``.
    Where some were measured on the decisive samples alone, those that were not are compared by their accuracy.

    Args:
        result: Answer to ``instance_stage``.
        groups: Every group, in graph order.
    """
    measured = ranking_values(result.trials)
    accuracy = {trial.label: measured[trial.id] for trial in result.trials if trial.id in measured}
    return tuple(sorted(groups, key=lambda group: best_first(accuracy.get(group), higher_is_better)))


def ranking_values(trials: Sequence[Trial]) -> dict[int, float]:
    """What trials are ranked by, by their ids: the accuracy where it is known of all, else the decisive score.

    That is an estimate of the accuracy and breaks ties between models of which it is the same, so that it comes before
    the accuracy where both are known.
    """
    judged = [trial for trial in trials if trial.accuracy is not None or not trial.complete]
    by_accuracy = all(trial.accuracy is not None for trial in judged)
    found = {trial.id: trial.accuracy if by_accuracy or trial.score is None else trial.score for trial in judged}
    return {number: value for number, value in found.items() if value is not None}


def sensitivity_probe(
    space: TuningSpace, base: TuningConfig, groups: Sequence[str], precision: Mode, batches: int
) -> ProbeStage:
    """The mean squared error of the model's output with each group alone quantized, as it is in ``base``.

    Not the error of each op's own output in the quantized model: that one grows along the graph, whoever brought it
    in, so that the last ops look worst. (On a MobileNetV1 whose first depthwise convolution is at fault it puts that
    one next to last, and 22 of 25 groups go back before the criterion is met.)
    """
    plain = space.fallback(base, groups, precision)
    return ProbeStage(
        "output error of each op",
        "op_sensitivity",
        # The probe quantizes ops of this config, so it keeps the sampling size that it would not need itself.
        replace(plain, sampling_size=base.sampling_size),
        tuple(groups),
        base,
        {"direction": "revert"},
        split="ops",
        batches=batches,
    )


def score_order(scores: Mapping[str, float], groups: Sequence[str]) -> tuple[str, ...]:
    """Groups by a probe's score, the largest first.

    A score that is no number (the quantized tensor overflowed) counts as the largest, a group without one as the
    smallest. Equal scores keep the order of ``groups``.
    """
    return tuple(sorted(groups, key=lambda group: best_first(scores.get(group, -math.inf), False), reverse=True))


def accumulate(
    space: TuningSpace,
    base: TuningConfig,
    order: Sequence[str],
    precision: Mode,
    remaining: Callable[[], int],
    start: int = 2,
    search: Search = SECTION,
) -> TuneGenerator:
    """Find the shortest growing prefix of ``order`` whose fallback to ``precision`` meets.

    The prefix of all groups is left out: it would be the fp32 model. Where fewer trials are left than there are
    prefixes, they are searched by sections whatever ``search`` says.

    Args:
        order: Groups, the one that goes back first in front.
        remaining: Trials that may still be used.
        start: Length of the shortest prefix; 2 where the groups were tried one by one before.
        search: How.
    """
    total = len(space.quantized_groups(base, precision))
    last = min(len(order), total - 1)
    name = f"accumulated fallback to {precision}"

    def stage(name: str, lengths: Sequence[int]) -> Stage:
        candidates = (
            Candidate(space.fallback(base, order[:length], precision), f"{length} of {total} groups")
            for length in lengths
        )
        return Stage(name, candidates, use="prefix", accuracy="verdict", total=len(lengths), order=tuple(order))

    if last < start:
        return
    if search.kind == "linear" and last - start + 1 <= remaining():
        yield stage(name, range(start, last + 1))
        return

    def section(lengths: Sequence[int], word: str) -> Stage:
        # What meets here may not be the answer yet: it neither ends the run nor is worth a measurement.
        return replace(stage(f"{name}, {word}", lengths), ends_run=False, latency="none")

    found = yield from section_search(start, last, search, remaining, section)
    if found.length is not None and not found.finished:
        yield stage(name, [found.length])  # known, so it costs nothing: it is the answer, and ends the run
