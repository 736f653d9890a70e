"""Evaluation of a sentence encoder on STS-B: Spearman correlation of cosine similarities with human scores.

Sentences are sorted by length, so that a batch is padded no longer than needed. DISTUNE_ASSETS is the folder with
data/.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

BATCH = 32


def evaluate(model: Callable[..., NDArray[np.float32]]) -> float:
    """Spearman correlation over the test pairs; ``model`` gives embeddings [batch, width] of unit length."""
    data = _data()
    similarity = (_embeddings(model, data, "a") * _embeddings(model, data, "b")).sum(axis=1)
    return float(spearmanr(similarity, data["scores"]).statistic)


def _embeddings(model: Callable[..., NDArray[np.float32]], data: dict[str, NDArray], side: str) -> NDArray[np.float32]:
    ids, mask = data[f"input_ids_{side}"].astype(np.int64), data[f"attention_mask_{side}"].astype(np.int64)
    order = np.argsort(mask.sum(axis=1), kind="stable")
    parts = []
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        length = int(mask[rows].sum(axis=1).max())
        parts.append(model(input_ids=ids[rows, :length], attention_mask=mask[rows, :length]))
    embeddings = np.concatenate(parts)
    return embeddings[np.argsort(order)]


@cache
def _data() -> dict[str, NDArray]:
    with np.load(Path(os.environ["DISTUNE_ASSETS"]) / "data" / "stsb_test.npz") as file:
        return dict(file)
