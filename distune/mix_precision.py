"""Lower floating-point precision from Python: ``fit`` turns an ONNX model to fp16 and judges it by the criterion.

::

    from distune import mix_precision
    from distune.config import MixedPrecisionConfig

    found = mix_precision.fit("model.onnx", MixedPrecisionConfig(precisions="fp16"), eval_func=score)

ONNX Runtime's CPU provider computes few operators in fp16 and casts around the others: the model is half as large, and
as a rule not faster. The result says what was measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distune.api.model import model_spec, onnx_inputs
from distune.config.conf import MixedPrecisionConfig
from distune.config.conf_to_job import Live, job_of
from distune.config.job import TuningJob
from distune.config.process_options import options
from distune.errors import SpaceError, TrialError, UsageError
from distune.evaluation.latency import PairedLatency, measure

if TYPE_CHECKING:
    import onnx

    from distune.backends.onnxruntime.backend import OnnxRuntimeModel
    from distune.config.schema import Configuration


@dataclass(frozen=True)
class MixedPrecisionResult:
    """The outcome: true where the criterion is met, or where nothing was asked to be met.

    Attributes:
        outcome: ``met``, ``not_met`` or ``not_judged``.
        best_effort: The model, whether it meets or not.
        accuracy, baseline_accuracy: Of the model and of fp32; ``None`` where nothing was judged.
        size_bytes, baseline_size_bytes: Of the files.
        latency: Against fp32, on the first batch of ``eval_dataloader``; ``None`` without one.
        sources: The files of the fp32 model, which ``save`` never writes over.
    """

    outcome: Literal["met", "not_met", "not_judged"]
    best_effort: onnx.ModelProto
    accuracy: float | None
    baseline_accuracy: float | None
    size_bytes: int
    baseline_size_bytes: int
    latency: PairedLatency | None
    sources: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return self.outcome != "not_met"

    @property
    def model(self) -> onnx.ModelProto | None:
        """The accepted model."""
        return self.best_effort if self else None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the accepted model to a file (one of 2 GB or more with its weights beside it).

        Raises:
            UsageError: No model was accepted, the file cannot be written, or the fp32 model is there.
        """
        if not self:
            raise UsageError("save: the model does not meet the criterion; it is in .best_effort")
        from distune.backends.onnxruntime.storage import stored_files
        from distune.report.saving import named_after, write_model

        target = Path(os.fspath(path)).expanduser().absolute()
        write_model(named_after(target, stored_files(self.best_effort, external=False)), self.sources)
        return target


def fit(
    model: Any,
    conf: MixedPrecisionConfig | None = None,
    eval_func: Callable[..., Any] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: Any = None,
) -> MixedPrecisionResult:
    """Turn a model to fp16 and judge it, in this process.

    Args:
        model: Path of an ONNX file or ``onnx.ModelProto``, in fp32.
        conf: Precision, criterion, and the ops that stay in fp32 (``dtype: ["fp32"]`` in a rule).
        eval_func, eval_dataloader, eval_metric: As in ``quantization.fit``.

    Raises:
        UsageError: Config, model, data or function is at fault.
        TrialError: ONNX Runtime cannot load the model in fp16.
    """
    conf = _checked(conf)
    spec = model_spec(model)
    job = job_of(conf, spec, Live(None, eval_func, eval_dataloader, eval_metric), seed=options.random_seed)

    from distune.backends.onnxruntime.backend import OnnxRuntimeModel
    from distune.backends.onnxruntime.model import load_model
    from distune.distributed.files import files_of

    fp32 = load_model(spec)
    half = _converted(fp32, conf.check())
    candidate, baseline = OnnxRuntimeModel(half, 1), OnnxRuntimeModel(fp32, 1)
    outcome: Literal["met", "not_met", "not_judged"] = "not_judged"
    accuracy = baseline_accuracy = None
    if job.evaluation.can_judge:
        accuracy, baseline_accuracy, met = _judged(job, candidate, baseline)
        outcome = "met" if met else "not_met"
    return MixedPrecisionResult(
        outcome,
        half,
        accuracy,
        baseline_accuracy,
        candidate.size_bytes,
        baseline.size_bytes,
        None if eval_dataloader is None else _latency(candidate, baseline, eval_dataloader),
        tuple(files_of(TuningJob(spec))),
    )


def _checked(conf: object) -> MixedPrecisionConfig:
    if conf is None:
        conf = MixedPrecisionConfig(precisions="fp16")
    if not isinstance(conf, MixedPrecisionConfig):
        raise UsageError(f"conf is a {type(conf).__name__}; expected a MixedPrecisionConfig")
    extras = conf.checked_extras()
    if "fp16" not in extras.precisions or "fp16" in extras.excluded_precisions:
        raise UsageError(
            "MixedPrecisionConfig.precisions: bf16 is not for ONNX models: ONNX Runtime's CPU kernels have none; give "
            "precisions='fp16'"
        )
    return conf


def _converted(fp32: onnx.ModelProto, configuration: Configuration) -> onnx.ModelProto:
    """``fp32`` in fp16, but for the ops that the rules keep; inputs and outputs stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    nodes = [(node.op_type, node.name) for node in fp32.graph.node]
    kept_types = _kept(configuration.quantization.optype_wise, {op_type for op_type, _ in nodes}, "op_type_dict")
    kept_names = _kept(configuration.quantization.op_wise, {name for _, name in nodes}, "op_name_dict")
    copy = onnx.ModelProto()
    copy.CopyFrom(fp32)
    try:
        half: onnx.ModelProto = convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *sorted(kept_types)],
            node_block_list=sorted(kept_names),
        )
    except (ValueError, RuntimeError) as error:
        raise TrialError(f"the model cannot be turned to fp16: {error}") from error
    return half


def _kept(rules: Any, names: set[str], field: str) -> set[str]:
    """What the rules keep in fp32.

    Raises:
        SpaceError: A pattern matches nothing.
    """
    kept: set[str] = set()
    for pattern, rule in rules.items():
        matching = {name for name in names if re.fullmatch(pattern, name)}
        if not matching:
            raise SpaceError(f"MixedPrecisionConfig.{field}: {pattern!r} matches nothing in the model")
        dtypes = {*(rule.weight.dtype or ()), *(rule.activation.dtype or ())}
        if "fp32" in dtypes and "fp16" not in dtypes:
            kept |= matching
    return kept


def _judged(job: TuningJob, candidate: OnnxRuntimeModel, baseline: OnnxRuntimeModel) -> tuple[float, float, bool]:
    """Accuracy of both, and whether the candidate meets."""
    from distune.evaluation.accuracy import Evaluator
    from distune.evaluation.criterion import all_meet, check_directions, meets, metric_targets, target_accuracy

    evaluation, criterion = job.evaluation, job.criterion
    outputs = [output.name for output in baseline.native.graph.output]
    higher = criterion.higher_is_better
    evaluator = Evaluator(evaluation, onnx_inputs(baseline.native), outputs, job.seed, higher_is_better=higher)
    check_directions(evaluation, criterion, evaluator.metric_directions)
    if evaluator.needs_reference:
        evaluator.set_reference(baseline)
    fp32, half = evaluator.score(baseline), evaluator.score(candidate)
    if evaluation.each_must_meet:
        met = all_meet(half.metrics, metric_targets(criterion, fp32.metrics, evaluator.metric_directions))
    else:
        met = meets(half.value, target_accuracy(criterion, fp32.value), criterion.higher_is_better)
    return half.value, fp32.value, met


def _latency(candidate: OnnxRuntimeModel, baseline: OnnxRuntimeModel, dataloader: Iterable[Any]) -> PairedLatency:
    from distune.data.loader import open_dataloader
    from distune.evaluation.feeds import to_feed

    batch = next(iter(open_dataloader(dataloader, options.random_seed)))
    feed = to_feed(batch.inputs, onnx_inputs(baseline.native))
    return measure(candidate.timed(feed), baseline.timed(feed))


__all__ = ["MixedPrecisionResult", "fit"]
