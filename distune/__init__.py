"""distune: the fastest quantized model that provably keeps the accuracy, found by many ranks at once."""

from __future__ import annotations

__version__ = "0.1.0"
