"""Cross-entropy and perplexity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distune.errors import DataError
from distune.metrics.base import PerSampleMetric, metric_registry, one_label, one_output


@metric_registry("Loss")
class Loss(PerSampleMetric):
    """Mean cross-entropy (natural logarithm) over samples, or over tokens; lower is better.

    Outputs are logits [n, ..., classes], labels class ids [n, ...].

    Args:
        ignore_index: Labels of this value do not count (padding).
    """

    higher_is_better = False
    outcome_low = 0.0

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self._ignore = ignore_index

    def outcomes(self, outputs: Any, labels: Any) -> NDArray[np.float64]:
        logits, targets = one_output(outputs, self), one_label(labels, self)
        if logits.ndim < 2 or logits.shape[:-1] != targets.shape or targets.dtype.kind not in "iu":
            raise DataError(
                f"{type(self).__name__}: outputs {logits.dtype}{list(logits.shape)} and labels "
                f"{targets.dtype}{list(targets.shape)} do not fit: logits [n, ..., classes] and class ids [n, ...]"
            )
        counted = targets != self._ignore
        ids = np.where(counted, targets, 0).astype(np.int64)
        classes = logits.shape[-1]
        strange = np.unique(ids[(ids < 0) | (ids >= classes)])
        if strange.size:
            named = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
            raise DataError(
                f"{type(self).__name__}: labels {named} are none of the {classes} classes, 0 to {classes - 1}; labels "
                f"that do not count (padding) are those of ignore_index, which is {self._ignore}"
            )
        # A sum over many classes does not fit into float16; copies in float64 would only take memory.
        logits = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
        top = logits.max(axis=-1, keepdims=True)
        own = np.take_along_axis(logits, ids[..., np.newaxis], axis=-1)[..., 0]
        log_sum = np.log(np.exp(logits - top).sum(axis=-1, dtype=np.float64))  # of 1 or more, so never below 0
        entropy = log_sum + (top[..., 0].astype(np.float64) - own)
        counting = np.where(counted, entropy, 0.0)
        sums: NDArray[np.float64] = counting.reshape(len(targets), -1).sum(axis=1)
        return sums

    def weights(self, outputs: Any, labels: Any) -> NDArray[np.float64] | None:
        targets = one_label(labels, self)
        counts: NDArray[np.float64] = (targets != self._ignore).reshape(len(targets), -1).sum(axis=1, dtype=np.float64)
        return counts


@metric_registry("Perplexity")
class Perplexity(Loss):
    """``exp`` of the mean cross-entropy, lower is better; arguments and shapes as of ``Loss``."""

    def finish(self, mean: float) -> float:
        return math.inf if mean > 700 else math.exp(mean)  # exp overflows a float at 709.8
