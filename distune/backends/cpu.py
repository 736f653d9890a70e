"""What the processor means for quantization."""

from __future__ import annotations

import platform
from pathlib import Path

VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"})
"""Names of the x86 instructions that add products of 8-bit numbers without saturating at 16 bits."""

AMX_FLAGS = frozenset({"amx_tile", "amx_int8"})
"""Names of the x86 instructions that multiply tiles of 8-bit numbers; it takes both."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature flags of the first processor; empty where the system does not tell."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def needs_reduce_range(flags: frozenset[str] | None = None, machine: str = "") -> bool:
    """Whether int8 weights must stay within 7 bits.

    x86 without VNNI multiplies uint8 by int8 with ``vpmaddubsw``, whose 16-bit sums saturate when both use all bits.

    Args:
        flags: Feature flags, this processor's by default.
        machine: As ``platform.machine()``, this one's by default.
    """
    flags = cpu_flags() if flags is None else flags
    x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64", "i386", "i686")
    return x86 and bool(flags) and not flags & VNNI_FLAGS


def has_amx(flags: frozenset[str] | None = None) -> bool:
    """Whether the processor multiplies tiles of 8-bit numbers.

    Args:
        flags: Feature flags, this processor's by default.
    """
    return AMX_FLAGS.issubset(cpu_flags() if flags is None else flags)
