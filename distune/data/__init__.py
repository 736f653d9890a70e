"""Datasets, transforms and dataloaders."""
