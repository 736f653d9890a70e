"""Where training stands: kept after each epoch, so that an interrupted trial goes on there and nothing trains twice.

Files hold tensors and plain values alone and are read with ``weights_only=True``. What is drawn at random in an epoch
is seeded by the epoch, so that the state of no generator has to be kept.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """State between two epochs.

    Attributes:
        epoch: The next one to train.
        state: Of the module (``TrainableModule.state``).
        optimizer: ``state_dict`` of the optimizer; empty once training is over.
        losses: Mean loss of each epoch so far.
    """

    epoch: int
    state: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[float, ...] = ()


class Checkpoints:
    """The newest checkpoint of each training, in files of a folder or, where there is none, in memory.

    Args:
        folder: Exists and can be written; ``None`` keeps checkpoints in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[str, Checkpoint] = {}

    def load(self, key: str) -> Checkpoint | None:
        """The newest one of ``key``; ``None`` where there is none, or none that can be read: it is made anew then."""
        if self._folder is None:
            return self._kept.get(key)
        try:
            found = torch.load(self._path(self._folder, key), weights_only=True, map_location="cpu")
            if found.pop("version") != VERSION:
                return None
            return Checkpoint(**{**found, "losses": tuple(found["losses"])})
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
            return None  # torn, of an older version, or not there

    def save(self, key: str, checkpoint: Checkpoint) -> None:
        """Replace the newest one of ``key``, all at once."""
        if self._folder is None:
            self._kept[key] = copy.deepcopy(checkpoint)  # an optimizer goes on with the tensors of its state
            return
        path = self._path(self._folder, key)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        content = {
            "version": VERSION,
            "epoch": checkpoint.epoch,
            "state": dict(checkpoint.state),
            "optimizer": dict(checkpoint.optimizer),
            "losses": list(checkpoint.losses),
        }
        try:
            with draft.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"qat-{key}.pt"


__all__ = ["Checkpoint", "Checkpoints"]
