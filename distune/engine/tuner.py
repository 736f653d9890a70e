"""One run from start to result: joins strategy, scheduler, transport and journal.

The tuner asks the workers what the model is, builds the tuning space, has the baseline scored, lets the strategy ask
for stages, chooses the winner and exports it. What it decides it decides in candidate order; what it knows it has
read from the journal or written there first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from distune.backends.statistics import merge
from distune.config.job import TuningJob
from distune.distributed.transport import Event, ResultArrived, Transport, WorkerLost
from distune.engine import events
from distune.engine.book import TrialBook
from distune.engine.decisions import DecisionLog
from distune.engine.dispatcher import Dispatcher, Interrupted
from distune.engine.objective import Baseline, choose
from distune.engine.stage_run import Decision, StageRun
from distune.errors import DistuneError, TransportError, UsageError, UserCodeError
from distune.evaluation.criterion import target_accuracy
from distune.evaluation.multi_metric import all_meet
from distune.journal.journal import Journal
from distune.journal.replay import Outcome
from distune.journal.signature import differences, signature
from distune.journal.workspace import Workspace
from distune.report.outcome import OutcomeName
from distune.space.capability import Capability
from distune.space.op_config import TuningConfig
from distune.space.tuning_space import TuningSpace, build_space
from distune.strategies.base import Answer, StrategyContext, TuningFinished, Wanted
from distune.strategies.registry import strategy_class
from distune.strategies.stage import Candidate, ProbeResult, ProbeStage, Stage, StageResult, Trial, Verdict
from distune.trial import messages as m
