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

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from distune.api.fitting import carry_out
from distune.api.names import known_names
from distune.api.result import FitResult, FoundModel
from distune.config.conf import PostTrainingQuantConfig, QuantizationAwareTrainingConfig
from distune.config.conf_to_job import Live, job_of
from distune.config.job import ModelSpec
from distune.config.process_options import options
from distune.errors import UsageError

if TYPE_CHECKING:
    from distune.config.job import TuningJob


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
        calib_func: PyTorch: gets the module and calls it on calibration data, instead of ``calib_dataloader``; what it
            calls it with is kept, up to the largest ``calibration_sampling_size``. Runs once on every rank.
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
    live = Live(calib_dataloader, eval_func, eval_dataloader, eval_metric)

    def job(spec: ModelSpec, workspace: str) -> TuningJob:
        checked = _checked_conf(conf)
        return job_of(
            checked,
            spec,
            replace(live, calib_dataloader=_calibration(spec, checked, calib_dataloader, calib_func)),
            seed=options.random_seed,
            workspace=workspace,
            known=known_names(),
            tensorboard=options.tensorboard,
        )

    return carry_out(job, model, isolation=isolation, model_on_all_ranks=model_on_all_ranks, fresh=fresh, quiet=quiet)


def _checked_conf(conf: object) -> PostTrainingQuantConfig:
    if isinstance(conf, QuantizationAwareTrainingConfig):
        raise UsageError(
            "QuantizationAwareTrainingConfig trains the model: use distune.training.prepare_compression and "
            "distune.training.fit; PostTrainingQuantConfig quantizes the model as it is"
        )
    if not isinstance(conf, PostTrainingQuantConfig):
        raise UsageError(f"conf is a {type(conf).__name__}; expected a PostTrainingQuantConfig")
    return conf


def _calibration(
    spec: ModelSpec,
    conf: PostTrainingQuantConfig,
    calib_dataloader: Iterable[Any] | None,
    calib_func: Callable[..., Any] | None,
) -> Iterable[Any] | None:
    """The calibration data: the dataloader, or what ``calib_func`` calls the module with."""
    if calib_func is None:
        return calib_dataloader
    if calib_dataloader is not None or conf.approach not in ("static", "auto"):
        why = "beside calib_dataloader" if calib_dataloader is not None else f"with approach {conf.approach!r}"
        warnings.warn(f"calib_func has no effect {why}", UserWarning, stacklevel=5)
        return calib_dataloader
    if spec.framework != "pytorch" or spec.live is None:
        raise UsageError(
            "calib_func calibrates by calling the model, which an ONNX model cannot be watched at; give its batches as "
            "calib_dataloader"
        )
    from distune.backends.pytorch.calib_func import recorded_batches

    sizes = conf.calibration_sampling_size
    return recorded_batches(spec.live, calib_func, sizes if isinstance(sizes, int) else max(sizes))


__all__ = ["FitResult", "FoundModel", "fit"]
