"""Trackers: TensorBoard, MLflow, and those of one's own (``distune.report.tracking.base.Tracker``)."""

from __future__ import annotations

from distune.report.tracking.base import Tracker

__all__ = ["Tracker"]
