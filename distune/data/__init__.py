"""Datasets, transforms and dataloaders: everything between a file and a batch of model inputs."""

from __future__ import annotations

from distune.data.batch import Batch, Inputs, Labels
from distune.data.dataloader import DataLoader
from distune.data.loader import DataSource, open_dataloader
from distune.data.registry import dataset_registry, datasets, filter_registry, filters, transform_registry, transforms

__all__ = [
    "Batch",
    "DataLoader",
    "DataSource",
    "Inputs",
    "Labels",
    "dataset_registry",
    "datasets",
    "filter_registry",
    "filters",
    "open_dataloader",
    "transform_registry",
    "transforms",
]
