"""Transforms meant for ``postprocess``: they get the model's outputs and labels of a whole batch."""

from __future__ import annotations

import numpy as np

from distune.data.batch import map_arrays
from distune.data.registry import transform_registry
from distune.data.transform import Pair, Transform


@transform_registry("LabelShift")
class LabelShift(Transform):
    """Subtract ``label_shift`` from the labels, for models without the background class that the labels count."""

    def __init__(self, label_shift: int = 0) -> None:
        self._shift = label_shift

    def __call__(self, pair: Pair) -> Pair:
        outputs, labels = pair
        return outputs, map_arrays(lambda array: np.asarray(array) - self._shift, labels)
