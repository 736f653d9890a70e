"""Events for TensorBoard in ``WORKSPACE/tensorboard``: a point a trial, and tensors of fp32 and the chosen model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distune.config.job import TuningJob
from distune.errors import MissingExtraError
from distune.report import words
from distune.report.result import RunResult
from distune.report.tracking.base import Tracker
from distune.strategies.stage import Trial


class TensorBoardTracker(Tracker):
    """Scalars ``trial/*`` by trial id, ``baseline/accuracy``, ``target``, and histograms by op: ``<op>/weight/fp32``
    beside ``<op>/weight/quantized``, and the same of activations.

    Args:
        log_dir: Where the events go; ``tensorboard`` in the workspace unless given. Events of an earlier start of the
            run are replaced: a resumed run tells everything again.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, log_dir: str = "") -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboardX", "tensorboard", "to write events for TensorBoard") from error
        self._make = SummaryWriter
        self._folder = log_dir
        self._writer: Any = None

    def on_start(self, job: TuningJob, workspace: Path) -> None:
        folder = Path(self._folder) if self._folder else workspace / "tensorboard"
        if not self._folder:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = self._make(str(folder))

    def on_baseline(self, accuracy: float, target: float) -> None:
        self._writer.add_scalar("baseline/accuracy", accuracy, 0)
        self._writer.add_scalar("baseline/target", target, 0)

    def on_trial(self, trial: Trial) -> None:
        if trial.accuracy is not None:
            self._writer.add_scalar("trial/accuracy", trial.accuracy, trial.id)
        for name, value in trial.metrics.items():
            self._writer.add_scalar(f"trial/metric/{name}", value, trial.id)
        if trial.size_bytes is not None:
            self._writer.add_scalar("trial/size_bytes", trial.size_bytes, trial.id)
        self._writer.add_scalar("trial/ops_quantized", len(trial.config.quantized_ops), trial.id)
        self._writer.add_scalar("trial/seconds", trial.end_s - trial.start_s, trial.id)

    def on_latency(self, trial: Trial, ratio: float, ci_low: float, ci_high: float) -> None:
        self._writer.add_scalar("trial/latency_ratio", ratio, trial.id)

    def on_diagnosis(self, trial: Trial, ops: Mapping[str, Mapping[str, Any]]) -> None:
        for op, tensors in ops.items():
            for kind, shown in tensors.items():
                for side, counts, bounds in (
                    ("fp32", "counts", "fp32_range"),
                    ("quantized", "quantized_counts", "quantized_range"),
                ):
                    if counts in shown:
                        self._histogram(f"{op}/{kind}/{side}", shown["edges"], shown[counts], shown[bounds], trial.id)
                if shown.get("sqnr_db") is not None:
                    self._writer.add_scalar(f"sqnr_db/{kind}/{op}", shown["sqnr_db"], trial.id)

    def on_end(self, result: RunResult, workspace: Path) -> None:
        self._writer.add_text("verdict", words.verdict_sentence(result), 0)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _histogram(self, tag: str, edges: list[float], counts: list[int], bounds: list[float], step: int) -> None:
        centres = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
        weights = np.asarray(counts, np.float64)
        self._writer.add_histogram_raw(
            tag,
            min=bounds[0],
            max=bounds[1],
            num=int(weights.sum()),
            sum=float(weights @ centres),
            sum_squares=float(weights @ centres**2),
            bucket_limits=edges[1:],
            bucket_counts=counts,
            global_step=step,
        )


__all__ = ["TensorBoardTracker"]
