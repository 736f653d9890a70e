"""The part of the embedded example's data that its network was trained on, for quantization-aware training."""

from __future__ import annotations

from typing import Any

import numpy as np
from digits_data import parts
from numpy.typing import NDArray


class Training:
    """The 900 images that the network was trained on, with their labels."""

    def __init__(self) -> None:
        self._part = parts()[0]

    def __len__(self) -> int:
        return len(self._part.labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Any]:
        return self._part.images[index], self._part.labels[index]
