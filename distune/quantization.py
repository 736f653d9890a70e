"""Post-training quantization from Python: ``fit`` finds the fastest quantized model that keeps the accuracy.

::

    from distune import quantization
    from distune.config import PostTrainingQuantConfig

    found = quantization.fit("model.onnx", PostTrainingQuantConfig(), calib_dataloader=batches, eval_func=score)
    if found:
        found.save("quantized")

Under ``mpirun -np N python script.py`` every rank runs the script; the trials are spread over the ranks and ``fit``
returns the same on all of them.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distune.api.interruption import Interruption, interruptible
from distune.api.live import forget, keep, placed
from distune.api.model import model_spec
from distune.api.names import known_names
from distune.api.result import FitResult, FoundModel
from distune.api.session import conduct
from distune.config.conf import PostTrainingQuantConfig, QuantizationAwareTrainingConfig
from distune.config.conf_to_job import Live, job_of
from distune.config.job import ModelSpec
from distune.config.process_options import options
from distune.distributed.topology import launched_by_mpi, launched_rank
from distune.errors import UsageError

if TYPE_CHECKING:
    from distune.config.job import TuningJob
    from distune.distributed.transport import Transport
    from distune.journal.workspace import Workspace

_CALLS = itertools.count(1)


def fit(
    model: Any,
    conf: PostTrainingQuantConfig,
    calib_dataloader: Iterable[Any] | None = None,
    calib_func: Callable[..., Any] | None = None,
    eval_func: Callable[..., Any] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: Any = None,
    *,
    isolation: Literal["process", "none"] | None = None,
    model_on_all_ranks: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> FitResult:
    """Quantize, and tune where there is a way to judge.

    Without ``eval_func``, and without ``eval_dataloader`` and ``eval_metric``, the model is quantized once.

    Args:
        model: Path of an ONNX file or ``onnx.ModelProto``, in fp32.
        conf: What is looked for and what is allowed.
        calib_dataloader: Iterable of ``(input, label)`` batches; can be iterated again and again.
        calib_func: For models that are calibrated by calling them (PyTorch); an ONNX model needs ``calib_dataloader``.
        eval_func: Gets the model, returns a number. The model can be called with arrays, and is used like an
            ``onnx.ModelProto`` (``SerializeToString()``, ``graph``). Called once for fp32 and once a trial.
        eval_dataloader: Iterable of ``(input, label)`` batches, as for calibration.
        eval_metric: A metric's name, ``{"topk": 1}``, ``{"multi_metrics": {...}}``, or an object or class with
            ``update(predictions, labels)``, ``reset()`` and ``result()``; a list of those.
        isolation: ``process`` runs trials in a child process, ``none`` in this one; by default a child wherever the
            functions can travel to it.
        model_on_all_ranks: Under MPI, send the model to every rank; else rank 0 alone holds it.
        fresh: Start over where the workspace holds an older run.
        quiet: Show only warnings and the final table.

    The first Ctrl-C, TERM or USR1 that reaches the main thread ends it in order, with outcome ``interrupted``: the same
    call resumes it. A second Ctrl-C ends it at once.

    Raises:
        UsageError: Config, model, data or a function of yours is at fault and nothing was tuned.
        DistuneError: The run failed.
    """
    call = next(_CALLS)
    live = Live(calib_dataloader, eval_func, eval_dataloader, eval_metric)

    def job(spec: ModelSpec, workspace: str) -> TuningJob:
        checked = _checked_conf(conf)
        _check_calib_func(calib_func, calib_dataloader, checked)
        return job_of(checked, spec, live, seed=options.random_seed, workspace=workspace, known=known_names())

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


def _checked_conf(conf: object) -> PostTrainingQuantConfig:
    if isinstance(conf, QuantizationAwareTrainingConfig):
        raise UsageError(
            "quantization-aware training needs the PyTorch backend, which is not there yet; PostTrainingQuantConfig "
            "quantizes the trained model"
        )
    if not isinstance(conf, PostTrainingQuantConfig):
        raise UsageError(f"conf is a {type(conf).__name__}; expected a PostTrainingQuantConfig")
    return conf


def _check_calib_func(calib_func: object, calib_dataloader: object, conf: PostTrainingQuantConfig) -> None:
    if calib_func is None:
        return
    if calib_dataloader is None and conf.approach in ("static", "auto"):
        raise UsageError(
            "calib_func calibrates by calling the model, which an ONNX model cannot be watched at; give its batches as "
            "calib_dataloader"
        )
    message = "calib_func has no effect: an ONNX model is calibrated with calib_dataloader"
    warnings.warn(message, UserWarning, stacklevel=4)


def _local(job: TuningJob, workspace: Workspace) -> Transport:
    from distune.distributed.chaos import Chaos
    from distune.distributed.local import LocalTransport

    return LocalTransport(job, log_dir=workspace.log, chaos=Chaos.of_job(job, os.environ))


__all__ = ["FitResult", "FoundModel", "fit"]
