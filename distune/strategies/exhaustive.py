"""Exhaustive: every combination of options, in order."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, ClassVar

from distune.strategies.base import TuneGenerator, TuneStrategy
from distune.strategies.registry import strategy_registry
from distune.strategies.search_space import SearchSpace, Unseen
from distune.strategies.settings import switch, whole_number
from distune.strategies.stage import Candidate, Stage, StageResult

_BATCH = 8


@strategy_registry
class ExhaustiveTuneStrategy(TuneStrategy):
    """Judges every tuning config of the space in order, the default first, drawing them as the budget allows."""

    tunes_parameters: ClassVar = True
    settings: ClassVar = {
        "fallback": "Whether fp32 is among the options of each op (default: false).",
        "batch_size": f"Configs in one stage (default: {_BATCH}).",
    }

    @classmethod
    def check(cls, kwargs: Mapping[str, Any], name: str = "") -> None:
        super().check(kwargs, name)
        switch(kwargs, "fallback")
        whole_number(kwargs, "batch_size", _BATCH)

    def next_tune_cfg(self) -> TuneGenerator:
        unseen = Unseen(SearchSpace(self.space, switch(self.context.kwargs, "fallback")))
        size = whole_number(self.context.kwargs, "batch_size", _BATCH)
        for number in count(1):
            batch: list[Candidate] = []
            while len(batch) < size and (following := unseen.following()) is not None:
                batch.append(following[1])
            if not batch:
                self.context.tell("space exhausted: every tuning config was judged")
                return
            result: StageResult = yield Stage(f"exhaustive {number}", batch, use="best", accuracy="verdict")
            if result.finished:
                return
