"""ONNX models on ONNX Runtime."""

from __future__ import annotations

import os

# ONNX Runtime 1.31 keeps a telemetry database in the user's home unless told otherwise before it is imported. A tuning
# run writes nothing outside its workspace, and while it measures latency nothing else is to run.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
