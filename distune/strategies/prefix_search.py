"""The shortest growing prefix that meets, found by sections instead of one by one.

A longer prefix has more of the model in floating point, so its accuracy is mostly higher: the lengths that fail come
first, those that meet follow, and the border can be searched for. Each round asks evenly spaced lengths between the
longest that failed and the shortest that met (``width`` of them, whatever the number of ranks, so that the decisions
are the same for any), which takes ``ceil(log(n + 1) / log(width + 1))`` rounds for ``n`` lengths. Accuracy is only
*mostly* monotone. So the length two below the answer is asked as well (the one below is known to fail); where it
meets, the accuracy is not monotone, and the window below is widened until nothing in it meets.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distune.strategies.base import StrategyContext, Wanted
from distune.strategies.stage import StageResult

Ask = Callable[[Sequence[int], str], Wanted]
"""Makes the stage that asks the given lengths, in growing order; the word says which round it is, for its name."""


@dataclass(frozen=True)
class Search:
    """How prefixes are searched.

    Attributes:
        kind: ``linear`` tries them one by one; ``section`` as the module says.
        width: Lengths that a round asks. It decides which are asked, so it does not follow the number of ranks.
        tell: Told where the accuracy was seen not to be monotone.
    """

    kind: Literal["section", "linear"] = "section"
    width: int = 3
    tell: Callable[[str], None] = lambda message: None

    @classmethod
    def of(cls, context: StrategyContext) -> Search:
        """As the job says."""
        job = context.job
        return cls(tell=context.tell) if job is None else cls(job.search, job.search_width, context.tell)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        length: The shortest length that was seen to meet; ``None`` where none was.
        finished: The run is over.
    """

    length: int | None
    finished: bool


def rounds(count: int, width: int) -> int:
    """Rounds that a search among ``count`` lengths takes at most, the check of the neighbours left out."""
    needed, reach = 0, 1
    while reach < count + 1:
        reach *= width + 1
        needed += 1
    return needed


def trials(count: int, width: int) -> int:
    """Trials that a search among ``count`` lengths may take, the check of the neighbours left out."""
    return 0 if count <= 0 else 1 + width * rounds(count, width)


def section_search(
    first: int, last: int, search: Search, remaining: Callable[[], int], ask: Ask
) -> Generator[Wanted, StageResult, Found]:
    """Find the shortest length from ``first`` to ``last`` that meets.

    The very shortest is asked in the first round too, and in front: often one op alone is at fault.

    Args:
        remaining: Trials that may still be used; a length that was judged before takes none. Rounds are narrower where
            those of ``search.width`` may need more; where even halving does, evenly spaced lengths are asked, the last
            one among them.
        ask: See ``Ask``.
    """
    state = _State(first - 1, last + 1)
    limit = remaining()
    if limit <= 0 or last < first:
        return Found(None, False)
    count = last - first + 1
    width = max((w for w in range(1, search.width + 1) if trials(count, w) <= limit), default=0)
    number = 0
    while state.gap:
        number += 1
        lengths = state.interior(width) if width else spaced(first, last, limit)
        if number == 1 and width:
            lengths = sorted({first, *lengths})
        if (yield from state.asked(lengths, ask, f"round {number}")):
            return state.found(True)
        if not width:
            return state.found(False)
    return (yield from _check_below(first, state, search, remaining, ask))


def _check_below(
    first: int, state: _State, search: Search, remaining: Callable[[], int], ask: Ask
) -> Generator[Wanted, StageResult, Found]:
    """Ask the lengths below the answer that nobody asked, ever more of them while some meet."""
    window, number = 1, 0
    while (limit := remaining()) > 0:
        lengths = range(max(first, state.met - 1 - window), state.met)
        asked = [length for length in lengths if length not in state.failed][-limit:]
        if not asked:
            break
        number, before = number + 1, state.met
        finished = yield from state.asked(asked, ask, "neighbours" if number == 1 else f"neighbours, widened {number}")
        if state.met < before:
            beyond = min(length for length in state.failed if length > state.met)
            search.tell(
                f"fallback: the accuracy is not monotone: the criterion is met with {state.met} of the groups in "
                f"floating point and not with {beyond}; shorter prefixes were looked at too"
            )
        if finished:
            return state.found(True)
        if state.met == before:
            break
        window *= 2
    return state.found(False)


class _State:
    """What is known of the lengths.

    Attributes:
        low: The longest below ``met`` that failed.
        met: The shortest that met; one more than the last where none did.
    """

    def __init__(self, low: int, met: int) -> None:
        self.low = low
        self.met = met
        self.failed: set[int] = {low}
        self._none = met

    @property
    def gap(self) -> int:
        return self.met - self.low - 1

    def interior(self, width: int) -> list[int]:
        """``width`` lengths that cut the gap evenly; all of a gap that is not wider."""
        if self.gap <= width:
            return list(range(self.low + 1, self.met))
        return [self.low + step * (self.met - self.low) // (width + 1) for step in range(1, width + 1)]

    def asked(self, lengths: Sequence[int], ask: Ask, word: str) -> Generator[Wanted, Any, bool]:
        """Ask, and take in what was answered; says whether the run is over."""
        result: StageResult = yield ask(lengths, word)
        for length, trial in zip(lengths, result.trials, strict=False):  # the stage ends with the first that meets
            if trial.met:
                self.met = min(self.met, length)
                break
            self.failed.add(length)
        self.low = max(length for length in self.failed if length < self.met)
        return result.finished or not result.trials

    def found(self, finished: bool) -> Found:
        return Found(None if self.met == self._none else self.met, finished)


def spaced(first: int, last: int, limit: int) -> list[int]:
    """At most ``limit`` whole numbers from ``first`` to ``last``, both ends in, evenly spaced."""
    count = last - first + 1
    if count <= 0 or limit <= 0:
        return []
    if count <= limit:
        return list(range(first, last + 1))
    if limit == 1:
        return [last]
    return sorted({first + round(step * (count - 1) / (limit - 1)) for step in range(limit)})
