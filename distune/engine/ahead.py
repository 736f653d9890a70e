"""Runs ahead: ranks that would idle begin with what the next stages will probably ask (``speculation``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from distune.engine.calibration import Calibrator
from distune.engine.dispatcher import Dispatcher
from distune.engine.probing import shards
from distune.engine.speculation import Speculation
from distune.engine.stage_run import StageRun
from distune.strategies.base import Answer, Wanted
from distune.strategies.stage import ProbeStage, Stage
from distune.trial.messages import Judge, RequestBody

_LOOK_PAUSE = 9
"""Times that a look ahead took, before the next one."""


class RunAhead:
    """Work that nobody has asked for yet: a result is used where it comes to be asked for, and dropped where not.

    Args:
        requests: What the candidates of a stage would be judged by, as far as the run's trials do not answer it.
    """

    def __init__(
        self, dispatcher: Dispatcher, calibrator: Calibrator, requests: Callable[[Stage], Iterator[Judge]]
    ) -> None:
        self._dispatcher = dispatcher
        self._calibrator = calibrator
        self._requests = requests
        self._speculation: Speculation | None = None
        self._begun: set[int] = set()
        self._looked: tuple[StageRun, int] | None = None
        self._look_again_s = 0.0

    def use(self, speculation: Speculation) -> None:
        """Look ahead with this from now on."""
        self._speculation = speculation

    def answered(self, wanted: Wanted, answer: Answer) -> None:
        """The strategy asked ``wanted`` and got ``answer``."""
        if self._speculation is not None:
            self._speculation.answered(wanted, answer)

    def submit(self, body: RequestBody) -> int:
        """Have ``body`` done because it is asked for, whether a rank ran ahead with it or not; gives its task."""
        task = self._dispatcher.submit(body)
        self._begun.discard(task)
        return task

    def look(self, run: StageRun, missing: int) -> None:
        """Give ranks that idle what the next stages will probably ask; what is no longer likely is dropped.

        To look ahead takes time that answers wait for: once in a stage, whenever half of what was missing then has
        come, when all that was begun then is done, and for a tenth of the time at most.

        Args:
            run: The open stage.
            missing: How many of its answers are still to come.
        """
        if self._speculation is None or self._dispatcher.idle <= 0 or self._dispatcher.now() < self._look_again_s:
            return
        done = bool(self._begun) and self._dispatcher.are_done(self._begun)
        if self._looked is not None and self._looked[0] is run and 2 * missing > self._looked[1] and not done:
            return
        self._looked = (run, missing)
        before, self._begun = self._begun, set()
        started = self._dispatcher.now()
        self._speculation.ahead(run.answers, self._begin)
        ended = self._dispatcher.now()
        self._look_again_s = ended + _LOOK_PAUSE * (ended - started)
        self._dispatcher.drop(before - self._begun)

    def end(self) -> None:
        """The trials are over: what still runs is given up."""
        self._speculation = None
        self._dispatcher.give_up(self._begun)
        self._begun = set()

    def _begin(self, stage: Stage | ProbeStage) -> int:
        """Begin with a stage that will probably come; gives the ranks that idle still."""
        if isinstance(stage, ProbeStage) and not all(map(self._calibrator.ready, stage.configs)):
            return self._dispatcher.idle
        for body in shards(stage) if isinstance(stage, ProbeStage) else self._requests(stage):
            if self._dispatcher.idle <= 0:
                break
            if self._calibrator.ready(body.config) and not self._dispatcher.knows(body):
                self._begun.update(self._dispatcher.submit_new(body))
        return self._dispatcher.idle


__all__ = ["RunAhead"]
