"""The workspace that a verb tells of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distune.report.evidence import Evidence


def read(path: Path) -> Evidence:
    """What ``path`` holds of a run; a damaged ``result.json`` is named on standard error.

    Raises:
        UsageError: It holds no run that can be read.
    """
    from distune.report.evidence import Evidence

    evidence = Evidence.read(path)
    if evidence.damage:
        print(f"distune: {evidence.damage}", file=sys.stderr)
    return evidence
