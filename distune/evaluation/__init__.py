"""Judging a model: accuracy, latency, size, footprint, and the criterion."""
