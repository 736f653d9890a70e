"""One ``fit`` from the user's objects to its result: alone, or on every rank of an ``mpirun``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distune.api.interruption import Interruption, interruptible
from distune.api.live import forget, keep, placed
from distune.api.model import model_spec
from distune.api.result import FitResult
from distune.api.session import conduct
from distune.config.job import ModelSpec, TuningJob
from distune.config.process_options import options
from distune.distributed.topology import launched_by_mpi, launched_rank
from distune.errors import UsageError

if TYPE_CHECKING:
    from distune.distributed.transport import Transport
    from distune.journal.workspace import Workspace

_CALLS = itertools.count(1)


def carry_out(
    job: Callable[[ModelSpec, str], TuningJob],
    model: Any,
    *,
    isolation: Literal["process", "none"] | None,
    model_on_all_ranks: bool,
    fresh: bool,
    quiet: bool,
) -> FitResult:
    """Run the job of a ``fit``; the arguments are those of ``quantization.fit``.

    Args:
        job: Makes the job of a model and a workspace; raises ``UsageError`` where the user's arguments are at fault.
    """
    call = next(_CALLS)

    def lead(connect: Callable[[TuningJob, Workspace], Transport]) -> tuple[FitResult, int]:
        prepared, remark = placed(job(model_spec(model), str(options.next_workspace())), call, isolation)
        remarks = filter(None, [remark])
        outcome, result = conduct(prepared, connect, interruption, fresh=fresh, quiet=quiet, remarks=remarks)
        return FitResult.of(outcome, result, Path(prepared.workspace)), outcome.exit_code

    def follow() -> None:
        # The model's file may lie on rank 0's node alone, and what is wrong with the rest rank 0 tells all.
        with suppress(UsageError):
            keep(job(ModelSpec("onnxruntime"), ""), call)

    def for_others(result: FitResult) -> FitResult:
        return result if model_on_all_ranks else result.without_model()

    with ExitStack() as stack:
        stack.callback(forget, call)
        # Under MPI the ranks above 0 end when rank 0 tells them to.
        interruption = stack.enter_context(interruptible()) if launched_rank() == 0 else Interruption()
        if not launched_by_mpi():
            return lead(_local)[0]
        from distune.api.ranks import lead_or_follow

        return lead_or_follow(lead, follow, for_others)


def _local(job: TuningJob, workspace: Workspace) -> Transport:
    from distune.distributed.chaos import Chaos
    from distune.distributed.local import LocalTransport

    return LocalTransport(job, log_dir=workspace.log, chaos=Chaos.of_job(job, os.environ))


__all__ = ["carry_out"]
