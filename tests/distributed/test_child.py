"""Whatever a trial does to its process, the worker answers and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from distune.config.job import EvaluationSpec, ModelSpec, TuningJob
from distune.distributed.child import ChildWorker
from distune.distributed.worker import pack_job, wait_for
from distune.errors import UsageError
from distune.trial.messages import Failure, LoadStatistics, ProbeAnswer, Request, Result
from tests.distributed.mpirun import ROOT
from tests.distributed.runners import ask

RUNNER = "tests.distributed.runners:ScriptedRunner"
Open = Callable[..., ChildWorker]


@pytest.fixture
def open_worker() -> Iterator[Open]:
    opened: list[ChildWorker] = []

    def make(job: TuningJob | None = None, **options: Any) -> ChildWorker:
        packed = pack_job(job or TuningJob(ModelSpec("none")))
        opened.append(ChildWorker(packed, "here", 5, runner=RUNNER, **options))
        return opened[-1]

    yield make
    for worker in opened:
        worker.close()


def wait(worker: ChildWorker, seconds: float = 30.0) -> Result:
    """The next result."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = worker.receive()
        if found:
            (result,) = found
            return result
        wait_for([worker], 0.5)
    raise AssertionError("no result")


def do(worker: ChildWorker, request: Request) -> Result:
    worker.send(request)
    return wait(worker)


def failure(result: Result) -> Failure:
    assert isinstance(result.body, Failure), result
    return result.body


def data(result: Result) -> dict[str, Any]:
    assert isinstance(result.body, ProbeAnswer), result
    return dict(result.body.data)


@pytest.mark.parametrize(("kind", "cause"), [("exit", "status 3"), ("segfault", "SIGSEGV")])
def test_a_dead_child_costs_only_the_request_that_it_was_working_on(open_worker: Open, kind: str, cause: str) -> None:
    worker = open_worker()
    worker.send(LoadStatistics((), 100, b"abc"))
    worker.send(ask(1, kind))
    worker.send(LoadStatistics((), 200, b"abcd"))
    worker.send(ask(2, "echo"))
    failed = wait(worker)
    assert (failed.request_id, failed.rank, failed.run, failure(failed).kind) == (1, 5, "test", "crash")
    assert cause in failure(failed).message
    assert "worker 5 on here" in failure(failed).message
    fine = wait(worker)
    assert fine.request_id == 2
    assert data(fine)["received"] == ("statistics 100: 3", "statistics 200: 4")


def test_a_trial_that_closes_descriptors_which_are_not_its_own_is_a_failed_one(open_worker: Open) -> None:
    worker = open_worker()
    failed = failure(do(worker, ask(1, "close_descriptors")))
    assert failed.kind == "crash"
    assert "Bad file descriptor" in failed.detail
    assert isinstance(do(worker, ask(2)).body, ProbeAnswer)


def test_a_crash_in_native_code_shows_the_python_stack(open_worker: Open) -> None:
    assert "in _segfault" in failure(do(open_worker(), ask(1, "segfault"))).detail


def test_a_child_that_is_killed_while_idle_is_replaced_without_a_failure(open_worker: Open) -> None:
    worker = open_worker()
    first = data(do(worker, ask(1)))["pid"]
    os.kill(first, 9)
    psutil.Process(first).wait(10)
    assert data(do(worker, ask(2)))["pid"] != first


def test_what_a_trial_prints_does_not_disturb_the_protocol_and_is_kept(open_worker: Open) -> None:
    worker = open_worker()
    assert isinstance(do(worker, ask(1, "print", text="hello from a trial")).body, ProbeAnswer)
    assert data(do(worker, ask(2)))["rank"] == 5
    printed = worker.take_output().decode()
    assert printed == "hello from a trial\nraw hello from a trial\n"
    assert worker.take_output() == b""


def test_a_trial_past_its_deadline_is_given_up(open_worker: Open) -> None:
    worker = open_worker()
    result = do(worker, replace(ask(1, "hang"), deadline_s=0.2))
    assert (failure(result).kind, failure(result).limit) == ("deadline", 0.2)
    assert "probing ops was not done after 0.2 s; raise tuning.limits.deadline to allow more" in failure(result).message
    assert result.end_s - result.start_s < 10
    assert data(do(worker, ask(2)))["rank"] == 5


def test_a_trial_that_is_cancelled_is_given_up(open_worker: Open) -> None:
    worker = open_worker()
    worker.send(ask(1, "hang"))
    worker.send(ask(2, "echo"))
    worker.cancel(1)
    assert failure(wait(worker)).kind == "cancelled"
    assert data(wait(worker))["rank"] == 5


@pytest.mark.parametrize("begun", [True, False], ids=["in the middle of it", "before the child is ready"])
def test_a_child_that_ends_cancelled_work_by_itself_lives_on(open_worker: Open, tmp_path: Path, begun: bool) -> None:
    worker = open_worker()
    child = worker.pid
    worker.send(ask(1, "work_until_unwanted", path=str(tmp_path / "begun")))
    while begun and not (tmp_path / "begun").exists():
        wait_for([worker], 0.01)
        assert worker.receive() == []
    worker.cancel(1)
    worker.cancel(1)
    worker.send(ask(2, "echo"))
    assert failure(wait(worker)).message == "no longer wanted"
    assert data(wait(worker))["pid"] == child


def test_what_was_cancelled_says_nothing_about_what_comes_next(open_worker: Open, tmp_path: Path) -> None:
    worker = open_worker()
    do(worker, ask(1))
    worker.cancel(1)  # too late
    worker.send(ask(2, "work_until_unwanted", path=str(tmp_path / "begun")))
    while not (tmp_path / "begun").exists():
        wait_for([worker], 0.01)
        assert worker.receive() == []
    worker.suspend()
    worker.cancel(2)
    time.sleep(0.2)
    assert worker.receive() == []  # it holds still, and has all its time yet
    worker.resume()
    assert failure(wait(worker)).message == "no longer wanted"


def test_a_runner_knows_what_its_rank_may_take_of_the_node(open_worker: Open) -> None:
    assert data(do(open_worker(memory_limit=1 << 33), ask(1, "memory"))) == {"bytes": 1 << 33}
    assert data(do(open_worker(), ask(1, "memory"))) == {"bytes": None}


def test_a_trial_that_takes_too_much_memory_is_given_up(open_worker: Open) -> None:
    worker = open_worker(memory_limit=300 << 20)
    eaten = failure(do(worker, ask(1, "eat", size=600 << 20)))
    assert (eaten.kind, eaten.limit) == ("memory", 300 << 20)
    assert data(do(worker, ask(2)))["rank"] == 5


def test_a_held_trial_stands_still_and_its_deadline_does_too(open_worker: Open) -> None:
    worker = open_worker()
    child = psutil.Process(data(do(worker, ask(1)))["pid"])
    worker.send(replace(ask(2, "burn", seconds=0.3), deadline_s=5.0))
    worker.suspend()
    # The wait is the point: a held trial must make no progress in it.
    assert worker.receive() == []
    before = child.cpu_times().user
    threading.Event().wait(0.5)
    assert child.status() == psutil.STATUS_STOPPED
    assert child.cpu_times().user == before
    assert worker.receive() == []
    worker.resume()
    assert isinstance(wait(worker).body, ProbeAnswer)


def test_time_in_which_a_child_is_held_does_not_count_against_its_deadline(open_worker: Open) -> None:
    worker = open_worker()
    do(worker, ask(1))
    worker.send(replace(ask(2, "burn", seconds=0.1), deadline_s=2.0))
    worker.suspend()
    threading.Event().wait(2.2)  # the wait is the point
    assert worker.receive() == []
    worker.resume()
    assert isinstance(wait(worker).body, ProbeAnswer)


def test_user_code_that_raises_or_exits_is_a_failure_with_its_traceback(open_worker: Open) -> None:
    worker = open_worker()
    raised = failure(do(worker, ask(1, "raise")))
    assert (raised.kind, raised.error) == ("error", "ValueError")
    assert 'raise ValueError("planted")' in raised.detail
    assert failure(do(worker, ask(2, "sysexit"))).kind == "user_error"


def test_a_runner_that_cannot_be_built_is_a_failure_of_every_request(open_worker: Open) -> None:
    worker = open_worker(TuningJob(ModelSpec("none", name="cannot-start")))
    for number in range(2):
        assert "planted" in failure(do(worker, ask(number))).message


def test_the_child_imports_what_the_parent_imports_and_stands_where_it_stands(
    open_worker: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMIX_RANK", "0")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    seen = data(do(open_worker(), ask(1, "environment")))
    assert seen["path"] == sys.path
    assert seen["cwd"] == str(tmp_path)
    assert "PMIX_RANK" not in seen["environ"]
    assert "PYTHONPATH" not in seen["environ"]


def test_a_function_of_the_users_script_travels(open_worker: Open) -> None:
    offset = 22
    job = TuningJob(ModelSpec("none"), evaluation=EvaluationSpec(eval_func=lambda model: model + offset))
    assert data(do(open_worker(job), ask(1, "call")))["value"] == 42


def test_an_object_that_cannot_travel_is_named_with_the_way_out() -> None:
    job = TuningJob(ModelSpec("none", live=threading.Lock()))
    with pytest.raises(UsageError, match=r"model\.live .*isolation: none"):
        pack_job(job)


def test_large_messages_pass_while_the_child_is_held(open_worker: Open) -> None:
    worker = open_worker()
    do(worker, ask(1))
    worker.suspend()
    worker.send(LoadStatistics((), 100, bytes(20_000_000)))  # must not block
    worker.resume()
    assert data(do(worker, ask(2)))["received"] == ("statistics 100: 20000000",)


def test_close_ends_the_child_and_what_it_started(open_worker: Open) -> None:
    worker = open_worker()
    child = psutil.Process(data(do(worker, ask(1)))["pid"])
    grandchild = psutil.Process(data(do(worker, ask(2, "spawn")))["pid"])
    worker.close()
    assert not child.is_running()
    psutil.wait_procs([grandchild], timeout=10)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_fork_that_outlives_the_child_does_not_hide_its_death(open_worker: Open) -> None:
    worker = open_worker()
    assert failure(do(worker, ask(1, "fork_and_exit"))).kind == "crash"


def test_the_child_dies_with_its_parent() -> None:
    program = (
        "import sys\n"
        "from tests.distributed.runners import ask\n"
        "from distune.config.job import ModelSpec, TuningJob\n"
        "from distune.distributed.child import ChildWorker\n"
        "from distune.distributed.worker import pack_job\n"
        f"worker = ChildWorker(pack_job(TuningJob(ModelSpec('none'))), 'here', 0, runner={RUNNER!r})\n"
        "worker.send(ask(1, 'hang'))\n"
        "print(worker.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
