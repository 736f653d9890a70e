"""A node's memory is shared by its ranks, unless the user says otherwise."""

from __future__ import annotations

from distune.config.job import ModelSpec, TrialLimits, TuningJob
from distune.distributed.limits import memory_limits
from distune.distributed.local import LocalTransport
from distune.distributed.resources import Resources
from distune.distributed.transport import ResultArrived, WorkerInfo
from distune.trial.messages import Failure
from tests.distributed.runners import ask
from tests.distributed.test_child import RUNNER

GIB = 1 << 30


def worker(rank: int, host: str, memory: int | None) -> WorkerInfo:
    resources = None if memory is None else Resources((0, 1), None, memory)
    return WorkerInfo(rank, host, resources=resources)


def test_ranks_of_a_node_share_what_is_allowed_there() -> None:
    workers = [worker(0, "a", 10 * GIB), worker(1, "a", 10 * GIB), worker(2, "b", 20 * GIB), worker(3, "c", None)]
    assert memory_limits(workers) == {0: int(4.5 * GIB), 1: int(4.5 * GIB), 2: 18 * GIB, 3: None}


def test_the_tightest_of_a_nodes_ranks_counts() -> None:
    assert memory_limits([worker(0, "a", 10 * GIB), worker(1, "a", 4 * GIB)])[0] == int(1.8 * GIB)


def test_what_the_user_says_holds_everywhere() -> None:
    workers = [worker(0, "a", GIB), worker(1, "b", None)]
    assert memory_limits(workers, 5) == {0: 5, 1: 5}


def test_a_trial_beyond_the_limit_of_the_job_is_a_failure_with_its_reason() -> None:
    job = TuningJob(ModelSpec("none"), limits=TrialLimits(memory_bytes=300 << 20))
    transport = LocalTransport(job, runner=RUNNER)
    try:
        transport.send(0, ask(1, "eat", size=600 << 20))
        (event,) = transport.poll(120.0)
        assert isinstance(event, ResultArrived)
        assert isinstance(event.result.body, Failure)
        assert event.result.body.kind == "memory"
        assert "of 300 MiB allowed" in event.result.body.message
    finally:
        transport.close()
