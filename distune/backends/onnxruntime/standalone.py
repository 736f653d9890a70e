"""Running an exported model as a deployment would: ONNX Runtime alone, without the onnx package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distune.backends.onnxruntime.session import create_session

if TYPE_CHECKING:
    from distune.backends.base import Feed


def run(path: str, feed: Feed, threads: int) -> None:
    """Load the model file ``path`` with the run's session options and run ``feed`` once."""
    create_session(path, threads).run(None, dict(feed))
