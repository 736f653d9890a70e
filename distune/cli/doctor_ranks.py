"""``doctor`` under mpirun: a ping and a tiny trial through every rank."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distune.config.job import EvaluationSpec, ModelSpec, TuningJob
from distune.distributed.transport import ResultArrived, Transport, WorkerInfo, WorkerLost
from distune.trial import messages as m

if TYPE_CHECKING:
    from distune.distributed.placement import Placement
    from distune.journal.workspace import Workspace

_PINGS = 20
_PING_TAG = 7
_PATIENCE_S = 120.0
"""For a trial of milliseconds: enough for a child to start on a busy node with a slow file system."""

_WIDTH, _SAMPLES = 16, 64


def examine_ranks() -> int:
    """Print what every rank is like and how its trial went (rank 0); the exit code, 0 where all went well."""
    from distune.distributed.mpi import connect, run_ranks

    communicator = connect()
    if communicator.Get_rank():
        _answer_pings(communicator)
        return run_ranks(lambda connect: 0)
    pings = {rank: _ping(communicator, rank) for rank in range(1, communicator.Get_size())}
    return run_ranks(lambda open_transport: _report(open_transport, pings))


def score(model: Callable[[Any], Any]) -> float:
    """Share of samples whose quantized output has the sign of the sum of the inputs, which is what the model adds."""
    import numpy as np

    inputs = np.random.default_rng(0).normal(size=(_SAMPLES, _WIDTH)).astype(np.float32)
    return float(np.mean(np.sign(model(inputs)[:, 0]) == np.sign(inputs.sum(1))))


def _ping(communicator: Any, rank: int) -> float:
    """Median round trip to ``rank`` in seconds."""
    times = []
    for _ in range(_PINGS):
        start = time.perf_counter()
        communicator.send(None, rank, _PING_TAG)
        communicator.recv(None, rank, _PING_TAG)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _answer_pings(communicator: Any) -> None:
    from distune.distributed.mpi_link import Backoff

    backoff = Backoff()
    while not communicator.iprobe(0, _PING_TAG):  # a rank whose turn has not come must not burn a core
        time.sleep(backoff.pause(sending=False))
    for _ in range(_PINGS):
        communicator.send(communicator.recv(None, 0, _PING_TAG), 0, _PING_TAG)


def _report(open_transport: Callable[[TuningJob, Workspace], Transport], pings: Mapping[int, float]) -> int:
    from distune.distributed.placement import place
    from distune.journal.workspace import Workspace

    with tempfile.TemporaryDirectory(prefix="distune-doctor-") as folder:
        model = Path(folder, "model.onnx")
        _write_model(model)
        job = TuningJob(
            ModelSpec("onnxruntime", str(model)),
            approach="dynamic",
            evaluation=EvaluationSpec(eval_func="distune.cli.doctor_ranks:score"),
            workspace=str(Path(folder, "workspace")),
        )
        with Workspace.open(Path(job.workspace)) as workspace:
            transport = open_transport(job, workspace)
            started = {worker.rank: worker for worker in transport.workers}
            trials = _trials(transport, job)
        placements, _ = place(started.values())
    _print_ranks(started, placements, pings, trials)
    for warning in transport.warnings:
        print(f"warning: {warning}")
    failed = [rank for rank, trial in trials.items() if isinstance(trial, str)]
    print(f"{len(trials) - len(failed)} of {len(started)} ranks ran the trial{': all well' if not failed else ''}")
    return 1 if failed else 0


def _print_ranks(
    started: Mapping[int, WorkerInfo],
    placements: Mapping[int, Placement],
    pings: Mapping[int, float],
    trials: Mapping[int, float | str],
) -> None:
    hosts = [worker.host for worker in started.values()]
    print(f"{'ranks':<14} " + ", ".join(f"{hosts.count(host)} on {host}" for host in dict.fromkeys(hosts)))
    survives = os.environ.get("OMPI_MCA_mpi_ft_enable") in ("1", "true")  # noqa: SIM112 - Open MPI's spelling
    print(f"{'a lost rank':<14} {'is survived (ULFM is on)' if survives else 'ends this job (ULFM is off)'}")
    for rank, worker in started.items():
        placement, trial = placements[rank], trials[rank]
        mask = worker.resources.cores if worker.resources is not None else ()
        cores = ",".join(map(str, placement.cores or mask)) or "unknown"
        ping = f"ping {pings[rank] * 1e6:.0f} us" if rank in pings else "the master"
        outcome = f"trial failed: {trial}" if isinstance(trial, str) else f"trial in {trial:.2f} s"
        print(
            f"rank {rank:<9} {worker.host} local {worker.local_rank}, cores {cores}, threads {placement.threads}, "
            f"{ping}, {outcome}"
        )


def _trials(transport: Transport, job: TuningJob) -> dict[int, float | str]:
    """Seconds of each rank's trial, or why there was none."""
    from distune.space.tuning_space import build_space

    ranks = [worker.rank for worker in transport.workers]
    found = _ask_all(transport, ranks[:1], m.Inspect())[0]
    if not isinstance(found, m.Inspection):
        return dict.fromkeys(ranks, _reason(found))
    space = build_space(found.capability, job.constraints, job.approach, job.recipes, job.calibration.sampling_sizes)
    answers = _ask_all(transport, ranks, m.Judge(space.default()))
    return {
        rank: body.quantize_s + body.evaluate_s if isinstance(body, m.Accuracy) else _reason(body)
        for rank, body in zip(ranks, answers, strict=True)
    }


def _ask_all(transport: Transport, ranks: Sequence[int], body: m.RequestBody) -> list[m.ResultBody | str]:
    """The answers of ``ranks``, or why there was none."""
    for rank in ranks:
        transport.send(rank, m.Request(rank + 1, body, deadline_s=_PATIENCE_S))
    answers: dict[int, m.ResultBody | str] = {}
    end = time.monotonic() + _PATIENCE_S
    while len(answers) < len(ranks) and time.monotonic() < end:
        for event in transport.poll(1.0):
            if isinstance(event, ResultArrived):
                answers[event.result.rank] = event.result.body
            elif isinstance(event, WorkerLost):
                answers[event.rank] = event.reason
    return [answers.get(rank, f"no answer after {_PATIENCE_S:g} s") for rank in ranks]


def _reason(body: object) -> str:
    return body.message if isinstance(body, m.Failure) else str(body)


def _write_model(path: Path) -> None:
    """A model that adds its inputs."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((_WIDTH, 1), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], "sum")],
        "doctor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
