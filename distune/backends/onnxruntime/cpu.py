"""What the processor means for quantization: the same for every backend."""

from __future__ import annotations

from distune.backends.cpu import VNNI_FLAGS, cpu_flags, has_amx, needs_reduce_range

__all__ = ["VNNI_FLAGS", "cpu_flags", "has_amx", "needs_reduce_range"]
