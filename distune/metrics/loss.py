"""Cross-entropy and perplexity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from distune.errors import DataError
from distune.metrics.base import Metric, metric_registry, one_label, one_output


@metric_registry("Loss")
class Loss(Metric):
    """Mean cross-entropy (natural logarithm) over samples, or over tokens.

    Outputs are logits [n, ..., classes], labels class ids [n, ...].

    Args:
        ignore_index: Labels of this value do not count (padding).
    """

    higher_is_better = False

    def __init__(self, ignore_index: int = -100) -> None:
        self._ignore = ignore_index
        self.reset()

    def reset(self) -> None:
        self._sum = 0.0
        self._count = 0

    def update(self, outputs: Any, labels: Any) -> None:
        logits, targets = one_output(outputs, self), one_label(labels, self)
        if logits.ndim < 2 or logits.shape[:-1] != targets.shape or targets.dtype.kind not in "iu":
            raise DataError(
                f"{type(self).__name__}: outputs {logits.dtype}{list(logits.shape)} and labels "
                f"{targets.dtype}{list(targets.shape)} do not fit: logits [n, ..., classes] and class ids [n, ...]"
            )
        counted = targets != self._ignore
        ids = np.where(counted, targets, 0).astype(np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < logits.shape[-1]):
            raise DataError(f"{type(self).__name__}: label {ids.max()} for {logits.shape[-1]} classes")
        top = logits.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
        entropy = log_sum - np.take_along_axis(logits, ids[..., np.newaxis], axis=-1)[..., 0]
        self._sum += float(entropy[counted].sum(dtype=np.float64))
        self._count += int(counted.sum())

    def result(self) -> float:
        if self._count == 0:
            raise DataError(f"{type(self).__name__}: no samples")
        return self._sum / self._count


@metric_registry("Perplexity")
class Perplexity(Loss):
    """``exp`` of the mean cross-entropy; arguments and shapes as of ``Loss``."""

    def result(self) -> float:
        mean = super().result()
        return math.exp(mean) if mean < 700 else math.inf  # exp overflows a float at 709.8
