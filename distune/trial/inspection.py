"""What a worker finds before the first trial: the model's facts, the data's facts, and whether the two fit.

Wrong data must end the run here, with a message about the data, and not as a hundred failed trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distune.backends.base import Backend, ModelFacts, RunnableModel
from distune.config.job import EvaluationSpec, TuningJob
from distune.data.batch import Batch
from distune.data.loader import DataSource, open_dataloader
from distune.data.transform import Postprocess
from distune.errors import DataError, DistuneError
from distune.evaluation.feeds import to_feed
from distune.metrics.base import create_metric
from distune.trial.messages import Inspection

_CHUNK = 1 << 20


def inspect(
    job: TuningJob,
    backend: Backend,
    evaluation: DataSource | None,
    calibration: DataSource | None,
    threads: int,
    fp32_in_shards: bool = False,
) -> Inspection:
    """Facts of model and data, after one batch of each data source went through fp32 and the metrics.

    Args:
        fp32_in_shards: See ``Inspection``.

    Raises:
        DataError: Data are missing, or do not fit the model or a metric.
    """
    if job.approach == "static" and calibration is None:
        raise DataError(
            "static quantization needs calibration data: give quantization.calibration.dataloader, or use approach: "
            "post_training_dynamic_quant"
        )
    facts = backend.facts()
    check = _Check(backend.load(None, threads), facts)
    data: dict[str, Any] = {}
    warnings = list(facts.warnings)
    digests = [_model_digest(job, facts)]
    if evaluation is not None:
        batch, outputs = check.predict(evaluation, "evaluation")
        _check_metrics(job.evaluation, batch, outputs)
        data |= {"samples": evaluation.samples, "batch_size": evaluation.batch_size}
        digests.append(evaluation.digest())
    if calibration is not None:
        check.predict(calibration, "calibration")
        data |= {"calibration_samples": calibration.samples, "calibration_batch_size": calibration.batch_size}
        digests.append(calibration.digest())
        wanted = max(job.calibration.sampling_sizes, default=0)
        if calibration.samples is not None and calibration.samples < wanted:
            warnings.append(
                f"the calibration data have {calibration.samples} samples, fewer than the {wanted} asked for"
            )
    if job.train is not None and job.train.dataloader is not None:
        digests.append(open_dataloader(job.train.dataloader, job.seed).digest())
    return Inspection(
        capability=facts.capability.without(job.excluded_precisions),
        size_bytes=facts.size_bytes,
        versions=facts.versions,
        session_options=facts.session_options,
        warnings=tuple(warnings),
        digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        data=data,
        model=_model_facts(facts),
        judged_is_deployed=type(backend).judged_is_deployed,
        fp32_in_shards=fp32_in_shards,
    )


class _Check:
    """Runs first batches through fp32."""

    def __init__(self, model: RunnableModel, facts: ModelFacts) -> None:
        self._model = model
        self._facts = facts

    def predict(self, source: DataSource, name: str) -> tuple[Batch, list[Any]]:
        """The first batch of a source and the fp32 model's outputs for it."""
        batch = next(iter(source), None)
        if batch is None:
            raise DataError(f"the {name} dataloader gives no batch")
        try:
            feed = to_feed(batch.inputs, self._facts.inputs)
        except DataError as error:
            raise DataError(f"the {name} data do not fit the model: {error}") from error
        try:
            return batch, list(self._model.predict(feed))
        except (DistuneError, MemoryError):
            raise
        except Exception as error:  # of the framework, each with classes of its own
            shapes = {key: array.shape for key, array in feed.items()}
            raise DataError(
                f"the fp32 model cannot run the first batch of the {name} data, of shapes {shapes}: {error}"
            ) from error


def _check_metrics(spec: EvaluationSpec, batch: Batch, outputs: list[Any]) -> None:
    """Let every metric take in one batch. No result is asked for: that of one batch may be undefined (one class)."""
    if spec.eval_func is not None or not spec.metrics:
        return
    processed, labels = Postprocess(spec.postprocess)((outputs[0] if len(outputs) == 1 else outputs, batch.labels))
    for given in spec.metrics:
        metric = create_metric(given.metric)
        metric.reset()
        metric.update(processed, labels if metric.compare_label else processed)
        metric.reset()


def _model_digest(job: TuningJob, facts: ModelFacts) -> str:
    if facts.digest:
        return facts.digest
    content = hashlib.sha256()
    path = Path(job.model.path.rpartition(":")[0] or job.model.path)
    if isinstance(job.model.live, bytes | bytearray | memoryview):
        content.update(job.model.live)
    elif job.model.live is None and path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                content.update(chunk)
    else:
        # A live object without a digest of its own: what is known of it, which at least tells architectures apart.
        content.update(repr((facts.size_bytes, facts.inputs, facts.outputs, facts.capability)).encode())
    return content.hexdigest()


def _model_facts(facts: ModelFacts) -> Mapping[str, Any]:
    inputs = [{"name": info.name, "dtype": info.dtype, "shape": list(info.shape)} for info in facts.inputs]
    return {"inputs": inputs, "outputs": list(facts.outputs)}


__all__ = ["inspect"]
