"""Datasets of the 1.x YAML that need TensorFlow: known by name, so that the error can say what to do instead."""

from __future__ import annotations

from typing import Any

from distune.data.dataset import Dataset
from distune.data.registry import dataset_registry
from distune.errors import DataError


@dataset_registry("TFRecordDataset", "ImageRecord", "VOCRecord", "COCORecord")
class TFRecordDataset(Dataset):
    """TFRecord files: refused with the way out."""

    def __init__(self, root: str) -> None:
        raise DataError(
            f"TFRecord files ({root}) need TensorFlow, which distune does not use: store the samples in an .npz file "
            "(dataset Npz) or as images (ImageFolder), or write a dataset of your own (module:callable)"
        )

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        raise NotImplementedError

    def digest(self) -> str:
        raise NotImplementedError
