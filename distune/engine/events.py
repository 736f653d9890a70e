"""What the tuner tells of a run while it goes on, and the base of those who listen (console, trackers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distune.config.job import TuningJob
from distune.distributed.transport import WorkerInfo
from distune.engine.outcome import RunOutcome
from distune.space.tuning_space import TuningSpace
from distune.strategies.stage import Trial
from distune.trial.messages import Latency, RequestBody


@dataclass(frozen=True)
class RunStarted:
    """Workers are connected; nothing is loaded yet."""

    job: TuningJob
    workers: tuple[WorkerInfo, ...]


@dataclass(frozen=True)
class SpaceBuilt:
    """The model is loaded and the tuning space is known.

    Attributes:
        resumed: Results that the journal holds already.
    """

    space: TuningSpace
    resumed: int


@dataclass(frozen=True)
class BaselineKnown:
    """The fp32 model was scored.

    Attributes:
        seconds: What it took, all ranks' together.
        ranks: How many scored it.
    """

    accuracy: float
    target: float
    higher_is_better: bool
    samples: int
    seconds: float
    ranks: int = 1


@dataclass(frozen=True)
class CalibrationStarted:
    """Statistics of ``samples`` samples are being collected."""

    samples: int


@dataclass(frozen=True)
class CalibrationDone:
    """They are known to every worker."""

    samples: int
    seconds: float


@dataclass(frozen=True)
class StageStarted:
    """A stage begins.

    Attributes:
        total: Its candidates, ``None`` where that is not known.
        remaining: Trials that the budget still allows.
    """

    name: str
    total: int | None
    remaining: int


@dataclass(frozen=True)
class TrialDecided:
    """A candidate's turn has come.

    Attributes:
        index: Position in the stage, from 0.
        total: Candidates of the stage, ``None`` where that is not known.
        again: It was judged before and cost nothing.
        best: The trial with the best accuracy so far.
    """

    trial: Trial
    index: int
    total: int | None
    again: bool
    best: Trial | None


@dataclass(frozen=True)
class LatencyMeasured:
    """A trial's latency is known."""

    trial: Trial
    latency: Latency


@dataclass(frozen=True)
class Diagnosed:
    """Tensors of a trial's model were compared with fp32's.

    Attributes:
        ops: ``{op: {"activation": ..., "weight": ...}}`` in the form of ``backends.diagnosis``.
    """

    trial: Trial
    ops: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class StageEnded:
    """A stage is over.

    Attributes:
        met: The first trial of it that met.
        judged: Candidates that were decided.
    """

    name: str
    met: Trial | None
    judged: int
    seconds: float


@dataclass(frozen=True)
class WorkersBusy:
    """Who is at work; told whenever work went out or came back.

    Attributes:
        doing: What each busy worker does, by rank.
        ranks: Of the workers that are alive.
        done: Results that are there, decided or not.
    """

    doing: Mapping[int, RequestBody]
    ranks: tuple[int, ...]
    done: int


@dataclass(frozen=True)
class Warned:
    """Something that the user should know. ``rank`` and ``host`` say where it came from, when it was a worker."""

    message: str
    rank: int | None = None
    host: str = ""


@dataclass(frozen=True)
class RunEnded:
    """The run is over, whichever way."""

    outcome: RunOutcome


RunEvent = (
    RunStarted
    | SpaceBuilt
    | BaselineKnown
    | CalibrationStarted
    | CalibrationDone
    | StageStarted
    | TrialDecided
    | LatencyMeasured
    | Diagnosed
    | StageEnded
    | WorkersBusy
    | Warned
    | RunEnded
)


class Listener:
    """Base of those who follow a run. ``on`` is called in the master's thread and must return soon."""

    def on(self, event: RunEvent) -> None:
        """Something happened; unknown events are to be ignored."""


class Listeners(Listener):
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)

    def on(self, event: RunEvent) -> None:
        """Tell each of them in turn."""
        for listener in self._listeners:
            listener.on(event)
