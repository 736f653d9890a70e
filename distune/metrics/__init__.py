"""Metrics of model outputs against labels. A new one is a class in a file here that registers itself."""

from __future__ import annotations

from distune.metrics.base import Metric, PerSampleMetric, create_metric, metric_registry, metrics

__all__ = ["Metric", "PerSampleMetric", "create_metric", "metric_registry", "metrics"]
