"""Datasets of the 1.x YAML that need TensorFlow: known by name, so that the error can say what to do instead."""

from __future__ import annotations

from distune.data.registry import dataset_registry
from distune.errors import DataError


@dataset_registry("TFRecordDataset", "ImageRecord", "VOCRecord", "COCORecord")
class TFRecordDataset:
    """TFRecord files: refused with the way out."""

    def __init__(self, root: str) -> None:
        raise DataError(
            f"TFRecord files ({root}) need TensorFlow, which distune does not use: store the samples in an .npz file "
            "(dataset Npz) or as images (ImageFolder), or write a dataset of your own (module:callable)"
        )
