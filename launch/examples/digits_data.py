"""The data of the embedded example: scikit-learn's digits, enlarged to 32x32 and split once.

1,797 handwritten digits (test part of the UCI set "Optical Recognition of Handwritten Digits", CC BY 4.0), 8x8 pixels
of 0..16. A seeded permutation splits them: 900 rows to train on, 100 to calibrate with, 797 to evaluate. Only the
last two parts are written to disk, each with the row numbers of its samples, so that anybody can check that they
do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SIZE = 32
TRAIN, CALIBRATION = 900, 100
SPLIT_SEED = 2024


@dataclass(frozen=True)
class Part:
    """One part of the split: images uint8 [N, 32, 32, 1], labels int64 [N], row numbers in scikit-learn's set [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write a compressed ``.npz`` with the arrays ``images``, ``labels`` and ``rows``."""
        np.savez_compressed(path, images=self.images, labels=self.labels, rows=self.rows)


def parts() -> tuple[Part, Part, Part]:
    """Training, calibration and test part; the same on every machine."""
    digits = load_digits()
    images = enlarge(digits.images)[..., None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    train, calibration, test = (
        Part(images[rows], labels[rows], rows) for rows in np.split(order, [TRAIN, TRAIN + CALIBRATION])
    )
    return train, calibration, test


def enlarge(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Images [N, 8, 8] of 0..16 become [N, 32, 32] of 0..255, bilinear with half-pixel centres."""
    weights = _bilinear(images.shape[1], SIZE)
    return np.rint(weights @ images @ weights.T * (255 / 16)).astype(np.uint8)


def _bilinear(small: int, large: int) -> NDArray[np.float64]:
    """Interpolation matrix [large, small]; every row sums to 1, and borders repeat the outermost pixel."""
    position = (np.arange(large) + 0.5) * small / large - 0.5
    below = np.floor(position).astype(int)
    share = position - below
    weights = np.zeros((large, small))
    np.add.at(weights, (np.arange(large), np.clip(below, 0, small - 1)), 1 - share)
    np.add.at(weights, (np.arange(large), np.clip(below + 1, 0, small - 1)), share)
    return weights
